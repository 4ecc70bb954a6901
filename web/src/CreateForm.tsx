import { type FormEvent, useEffect, useId, useRef, useState } from "react";
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
  /** More than one, or there is nothing to choose. */
  const [versions, setVersions] = useState<number[]>([]);
  const [version, setVersion] = useState<number>();
  const field = useRef<HTMLInputElement>(null);
  const faultId = useId();

  useEffect(() => {
    databases.versions().then(
      (known) => {
        setVersions(known.versions);
        setVersion(known.default);
      },
      // The server chooses, and says what is wrong when it is asked for a database.
      () => {},
    );
  }, []);

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
      onCreated(await databases.create(name, versions.length > 1 ? version : undefined));
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
        {versions.length > 1 && (
          <select aria-label="PostgreSQL" value={version} onChange={(event) => setVersion(Number(event.target.value))}>
            {versions.map((one) => (
              <option key={one} value={one}>
                PostgreSQL {one}
              </option>
            ))}
          </select>
        )}
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
