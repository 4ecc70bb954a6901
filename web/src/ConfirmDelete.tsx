import { useEffect, useRef } from "react";
import type { Database } from "./databases";

/** Asks before what cannot be undone. Escape and Cancel leave everything as it is. */
export function ConfirmDelete({
  database,
  onConfirm,
  onCancel,
}: {
  database: Database;
  onConfirm: () => void;
  onCancel: () => void;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (dialog.current?.open === false) dialog.current.showModal();
  }, []);

  return (
    <dialog ref={dialog} aria-labelledby="delete-title" onClose={onCancel}>
      <h2 id="delete-title">Delete {database.name}?</h2>
      <p>Its data goes with it, and open connections end. This cannot be undone.</p>
      <div className="row end">
        <button autoFocus onClick={() => dialog.current?.close()}>
          Cancel
        </button>
        <button
          className="danger"
          onClick={() => {
            // Closed first: the browser then gives the focus back to where it was.
            dialog.current?.close();
            onConfirm();
          }}
        >
          Delete {database.name}
        </button>
      </div>
    </dialog>
  );
}
