import { useEffect, useRef, useState } from "react";
import type { CreatedDatabase } from "./databases";

/** The one time that a password is shown. */
export function ConnectionString({ created, onClose }: { created: CreatedDatabase; onClose: () => void }) {
  const [copied, setCopied] = useState(false);
  const field = useRef<HTMLInputElement>(null);
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), [created.id]);

  async function copy() {
    try {
      await navigator.clipboard.writeText(created.connection_uri);
      setCopied(true);
    } catch {
      // No clipboard without HTTPS or localhost: select it, so that one key copies it.
      field.current?.select();
    }
  }

  return (
    <section className="secret" aria-labelledby="secret-title">
      <h2 id="secret-title" ref={heading} tabIndex={-1}>
        {created.name} is ready
      </h2>
      <p>Copy its connection string now. It holds the password and is not shown again.</p>
      <div className="row">
        <input
          ref={field}
          readOnly
          aria-label="Connection string"
          value={created.connection_uri}
          onFocus={(event) => event.target.select()}
        />
        <button className="main" onClick={copy}>
          {copied ? "Copied" : "Copy"}
        </button>
        <button onClick={onClose}>Done</button>
      </div>
      <span role="status" className="hidden">
        {copied ? "Connection string copied" : ""}
      </span>
    </section>
  );
}
