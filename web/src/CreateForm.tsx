import { type FormEvent, useId, useRef, useState } from "react";
import { databases } from "./api";
import { type CreatedDatabase, nameFault } from "./databases";

export function CreateForm({
  onCreated,
  onFault,
}: {
  onCreated: (created: CreatedDatabase) => void;
  onFault: (error: unknown) => void;
}) {
  const [name, setName] = useState("");
  const [fault, setFault] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const field = useRef<HTMLInputElement>(null);
  const faultId = useId();

  async function submit(event: FormEvent) {
    event.preventDefault();
    const wrong = nameFault(name);
    setFault(wrong);
    if (wrong !== null) {
      field.current?.focus();
      return;
    }
    setBusy(true);
    try {
      onCreated(await databases.create(name));
      setName("");
    } catch (error) {
      onFault(error);
    } finally {
      setBusy(false);
    }
  }

  return (
    <form className="create" onSubmit={submit} noValidate>
      <label htmlFor="name">New database</label>
      <div className="row">
        <input
          id="name"
          ref={field}
          value={name}
          placeholder="name"
          autoComplete="off"
          autoCapitalize="off"
          spellCheck={false}
          onChange={(event) => {
            setName(event.target.value);
            if (fault !== null) setFault(nameFault(event.target.value));
          }}
          aria-invalid={fault !== null}
          aria-describedby={fault === null ? undefined : faultId}
        />
        <button className="main" disabled={busy}>
          {busy ? "Creating…" : "Create"}
        </button>
      </div>
      {fault !== null && (
        <p id={faultId} className="fault" role="alert">
          {fault}
        </p>
      )}
    </form>
  );
}
