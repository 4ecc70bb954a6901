import { type FormEvent, useState } from "react";
import { ApiError, type Session, session } from "./api";

/** Trades a key for a session. The key leaves the page with the form. */
export function SignIn({ reason, onOpen }: { reason: string | null; onOpen: (opened: Session) => void }) {
  const [key, setKey] = useState("");
  const [fault, setFault] = useState<string | null>(reason);
  const [busy, setBusy] = useState(false);

  async function submit(event: FormEvent) {
    event.preventDefault();
    setBusy(true);
    try {
      onOpen(await session.open(key.trim()));
    } catch (error) {
      const refused = error instanceof ApiError && error.status === 401;
      setFault(refused ? "The server does not know this key." : String((error as Error).message));
      setBusy(false);
    }
  }

  return (
    <main className="sign-in">
      <img src="/icon.svg" alt="" width="56" height="56" />
      <h1>Dormouse</h1>
      <p className="quiet">Postgres that sleeps.</p>
      <form onSubmit={submit} aria-describedby="key-help">
        <label htmlFor="key">Key</label>
        <input
          id="key"
          type="password"
          autoComplete="current-password"
          autoFocus
          required
          value={key}
          onChange={(event) => setKey(event.target.value)}
          aria-invalid={fault !== null}
        />
        <p id="key-help" className="quiet">
          The operator’s key is in <code>admin.key</code> in the server’s folder. <code>dormouse tenant create</code>{" "}
          prints a tenant’s.
        </p>
        {fault !== null && (
          <p role="alert" className="fault">
            {fault}
          </p>
        )}
        <button className="main" disabled={busy || key.trim() === ""}>
          {busy ? "Signing in…" : "Sign in"}
        </button>
      </form>
    </main>
  );
}
