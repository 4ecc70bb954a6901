import { useCallback, useEffect, useRef, useState } from "react";
import { ApiError, type Session, databases } from "./api";
import { ConfirmDelete } from "./ConfirmDelete";
import { ConnectionString } from "./ConnectionString";
import { CreateForm } from "./CreateForm";
import { DatabaseTable } from "./DatabaseTable";
import { Events } from "./Events";
import { type Action, type CreatedDatabase, type Database, inOrder } from "./databases";
import { Live, type Mode } from "./live";

/** What an error says at the top of the page. */
interface Notice {
  title: string;
  detail: string;
}

export function Console({
  session,
  onSignOut,
  onExpired,
}: {
  session: Session;
  onSignOut: () => void;
  onExpired: () => void;
}) {
  const [list, setList] = useState<Database[] | null>(null);
  const [mode, setMode] = useState<Mode>("polling");
  const [unreachable, setUnreachable] = useState(false);
  const [notice, setNotice] = useState<Notice | null>(null);
  const [created, setCreated] = useState<CreatedDatabase | null>(null);
  const [deleting, setDeleting] = useState<Database | null>(null);
  const [told, setTold] = useState<Database | null>(null);
  const [working, setWorking] = useState<ReadonlySet<string>>(new Set());
  const [now, setNow] = useState(() => new Date());
  const live = useRef<Live | null>(null);
  /** The list as last set: events come between renders. */
  const shown = useRef<Database[]>([]);
  const [more, setMore] = useState(false);

  const fail = useCallback(
    (error: unknown) => {
      if (error instanceof ApiError) {
        if (error.status === 401) onExpired();
        setNotice({ title: error.title, detail: error.detail });
      } else {
        setNotice({ title: "The console made a mistake", detail: String(error) });
      }
    },
    [onExpired],
  );

  useEffect(() => {
    const show = (changed: Database[]) => {
      shown.current = changed;
      setList(changed);
    };
    const current = new Live({
      open: () => new EventSource("/v1/events"),
      onMode: setMode,
      later: (what, ms) => {
        const timer = setTimeout(what, ms);
        return () => clearTimeout(timer);
      },
      change: ({ id, state, message }) => {
        const known = shown.current.some((database) => database.id === id);
        show(shown.current.map((database) => (database.id === id ? { ...database, state, message } : database)));
        return known;
      },
      deleted: (id) => show(shown.current.filter((database) => database.id !== id)),
      refresh: async () => {
        try {
          const page = await databases.list();
          show(inOrder(page.databases));
          setMore(page.next_cursor !== null);
          setUnreachable(false);
        } catch (error) {
          // Said once, in the status line, and gone when the server is back.
          if (error instanceof ApiError && error.status === 0) setUnreachable(true);
          else fail(error);
        }
        setNow(new Date());
      },
    });
    live.current = current;
    return () => current.end();
  }, [fail]);

  async function act(action: Action, database: Database) {
    setNotice(null);
    setWorking((before) => new Set(before).add(database.id));
    try {
      await databases[action](database.id);
      if (action === "delete" && created?.id === database.id) setCreated(null);
    } catch (error) {
      fail(error);
    } finally {
      setWorking((before) => {
        const after = new Set(before);
        after.delete(database.id);
        return after;
      });
      live.current?.look();
    }
  }

  const status = unreachable ? "server unreachable" : mode === "live" ? "live" : "polling";
  return (
    <>
      <header>
        <img src="/icon.svg" alt="" width="28" height="28" />
        <h1>Dormouse</h1>
        <span className={`link ${status.replace(" ", "-")}`} role="status">
          {status}
        </span>
        <span className="who">{session.role === "admin" ? "operator" : session.tenant}</span>
        <button onClick={onSignOut}>Sign out</button>
      </header>
      <main>
        {notice !== null && (
          <div role="alert" className="notice">
            <div>
              <strong>{notice.title}</strong>
              {notice.detail !== "" && <p>{notice.detail}</p>}
            </div>
            <button onClick={() => setNotice(null)} aria-label="Dismiss this message">
              ×
            </button>
          </div>
        )}
        <CreateForm
          onFault={fail}
          onCreated={(database) => {
            setNotice(null);
            setCreated(database);
            live.current?.look();
          }}
        />
        {created !== null && (
          <ConnectionString key={created.id} created={created} onClose={() => setCreated(null)} />
        )}
        <section aria-labelledby="list-title">
          <h2 id="list-title">
            Databases {list !== null && list.length > 0 && <span className="count">{list.length}</span>}
          </h2>
          {list === null && !unreachable && <p className="quiet">Loading…</p>}
          {list !== null && list.length === 0 && (
            <div className="empty">
              <p>No database yet.</p>
              <p className="quiet">
                Name one above. It is ready at once, sleeps when nobody uses it, and wakes at the next query.
              </p>
            </div>
          )}
          {list !== null && list.length > 0 && (
            <DatabaseTable
              list={list}
              working={working}
              now={now}
              onAction={(action, database) => (action === "delete" ? setDeleting(database) : act(action, database))}
              onEvents={setTold}
            />
          )}
          {more && (
            <p className="quiet">
              These are the first {list?.length}. <code>dormouse db list</code> lists them all.
            </p>
          )}
        </section>
      </main>
      {told !== null && (
        <Events key={told.id} database={told} now={now} onFault={fail} onClose={() => setTold(null)} />
      )}
      {deleting !== null && (
        <ConfirmDelete
          key={deleting.id}
          database={deleting}
          onCancel={() => setDeleting(null)}
          onConfirm={() => act("delete", deleting)}
        />
      )}
    </>
  );
}
