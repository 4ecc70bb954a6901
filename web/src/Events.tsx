import { useCallback, useEffect, useRef, useState } from "react";
import { databases } from "./api";
import { type Database, type DatabaseEvent, ago, eventWords } from "./databases";

/** What happened to a database, newest first. */
export function Events({
  database,
  now,
  onFault,
  onClose,
}: {
  database: Database;
  now: Date;
  onFault: (error: unknown) => void;
  onClose: () => void;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [events, setEvents] = useState<DatabaseEvent[] | null>(null);
  const [next, setNext] = useState<string | null>(null);

  const load = useCallback(
    async (cursor?: string) => {
      try {
        const page = await databases.events(database.id, cursor);
        setEvents((before) => [...(cursor === undefined ? [] : (before ?? [])), ...page.events]);
        setNext(page.next_cursor);
      } catch (error) {
        dialog.current?.close();
        onFault(error);
      }
    },
    [database.id, onFault],
  );
  useEffect(() => {
    if (dialog.current?.open === false) dialog.current.showModal();
    void load();
  }, [load]);

  return (
    <dialog ref={dialog} className="events" aria-labelledby="events-title" onClose={onClose}>
      <h2 id="events-title">Events of {database.name}</h2>
      {events === null && <p className="quiet">Loading…</p>}
      <ol>
        {events?.map((event, index) => (
          <li key={index}>
            <time dateTime={event.at} title={event.at}>
              {ago(event.at, now)}
            </time>
            <span className="kind">{eventWords(event.kind)}</span>
            {event.message !== null && <p className="message">{event.message}</p>}
          </li>
        ))}
      </ol>
      <div className="row end">
        {next !== null && <button onClick={() => void load(next)}>Older</button>}
        <button autoFocus onClick={() => dialog.current?.close()}>
          Close
        </button>
      </div>
    </dialog>
  );
}
