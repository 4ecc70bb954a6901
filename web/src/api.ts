// The REST API as the console uses it. The session is an HttpOnly cookie, so no key is kept here.
import type { CreatedDatabase, Database, DatabaseEvent } from "./databases";

/** An answer that is not a success, as a person should read it. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
  ) {
    super(detail === "" ? title : `${title}: ${detail}`);
  }
}

/** Reads an error answer: problem+json where it is one, and something sensible where it is not. */
export function readProblem(status: number, body: string): ApiError {
  try {
    const problem: unknown = JSON.parse(body);
    if (typeof problem === "object" && problem !== null) {
      const { title, detail } = problem as { title?: unknown; detail?: unknown };
      if (typeof title === "string") return new ApiError(status, title, typeof detail === "string" ? detail : "");
    }
  } catch {
    // Not JSON: a proxy's page, or nothing.
  }
  return new ApiError(status, `The server answered ${status}`, body.length <= 200 ? body.trim() : "");
}

async function call(method: string, path: string, body?: unknown): Promise<unknown> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      credentials: "same-origin",
      ...(body === undefined
        ? {}
        : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
    });
  } catch {
    throw new ApiError(0, "The server cannot be reached", "Is `dormouse up` running? The console tries again.");
  }
  const text = await response.text();
  if (!response.ok) throw readProblem(response.status, text);
  return text === "" ? null : JSON.parse(text);
}

/** Who is signed in. */
export interface Session {
  role: "admin" | "tenant";
  /** The tenant's name. */
  tenant: string;
}

export const session = {
  show: () => call("GET", "/v1/session") as Promise<Session>,
  open: (key: string) => call("POST", "/v1/session", { key }) as Promise<Session>,
  close: () => call("DELETE", "/v1/session"),
};

const at = (id: string) => `/v1/databases/${encodeURIComponent(id)}`;

/** A page of databases. */
export interface Page {
  databases: Database[];
  /** Null on the last. */
  next_cursor: string | null;
}

/** A page of events, newest first. */
export interface EventPage {
  events: DatabaseEvent[];
  next_cursor: string | null;
}

/** Major versions of PostgreSQL that a database can be made of. */
export interface Versions {
  versions: number[];
  default: number;
}

export const databases = {
  versions: () => call("GET", "/v1/versions") as Promise<Versions>,
  events: (id: string, cursor?: string) =>
    call("GET", `${at(id)}/events?limit=20${cursor === undefined ? "" : `&cursor=${encodeURIComponent(cursor)}`}`) as Promise<EventPage>,
  list: () => call("GET", "/v1/databases?limit=1000") as Promise<Page>,
  create: (name: string, version?: number) =>
    call("POST", "/v1/databases", { name, ...(version === undefined ? {} : { pg_version: version }) }) as Promise<CreatedDatabase>,
  suspend: (id: string) => call("POST", `${at(id)}/suspend`),
  resume: (id: string) => call("POST", `${at(id)}/resume`),
  delete: (id: string) => call("DELETE", at(id)),
};
