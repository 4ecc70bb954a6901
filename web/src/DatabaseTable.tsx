import { type Action, type Database, actionsIn, ago, stateMeaning } from "./databases";

const labels: Record<Action, string> = { suspend: "Suspend", resume: "Resume", delete: "Delete" };

export function DatabaseTable({
  list,
  working,
  now,
  onAction,
  onEvents,
}: {
  list: Database[];
  /** Ids whose last request has not been answered. */
  working: ReadonlySet<string>;
  now: Date;
  onAction: (action: Action, database: Database) => void;
  onEvents: (database: Database) => void;
}) {
  const tenants = list.some((database) => database.tenant !== undefined);
  return (
    <table>
      <thead>
        <tr>
          <th scope="col">Name</th>
          <th scope="col">State</th>
          {tenants && <th scope="col">Tenant</th>}
          <th scope="col">Plan</th>
          <th scope="col">Postgres</th>
          <th scope="col">Created</th>
          <th scope="col">
            <span className="hidden">Actions</span>
          </th>
        </tr>
      </thead>
      <tbody>
        {list.map((database) => (
          <tr key={database.id} data-id={database.id}>
            <th scope="row">
              {database.name}
              <code className="id">{database.id}</code>
            </th>
            <td data-label="State">
              <span className={`state ${database.state}`} title={stateMeaning[database.state]}>
                {database.state}
              </span>
              {database.message && <p className="message">{database.message}</p>}
            </td>
            {tenants && <td data-label="Tenant">{database.tenant}</td>}
            <td data-label="Plan">{database.plan}</td>
            <td data-label="Postgres">{database.pg_version}</td>
            <td data-label="Created">
              <time dateTime={database.created_at} title={database.created_at}>
                {ago(database.created_at, now)}
              </time>
            </td>
            <td className="actions">
              <button aria-label={`Events of ${database.name}`} onClick={() => onEvents(database)}>
                Events
              </button>
              {actionsIn(database.state).map((action) => (
                <button
                  key={action}
                  className={action === "delete" ? "danger quiet-button" : ""}
                  disabled={working.has(database.id)}
                  aria-label={`${labels[action]} ${database.name}`}
                  onClick={() => onAction(action, database)}
                >
                  {labels[action]}
                </button>
              ))}
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
