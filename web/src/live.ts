// Keeps the list fresh: the server's events while there is a stream, polling while there is none.
import type { State } from "./databases";

/** What the server says when a database's state changes. */
export interface Change {
  id: string;
  state: State;
  message: string | null;
}

/** As much of EventSource as is used; tests give their own. */
export interface Source {
  addEventListener(name: string, listener: (event: { data?: unknown }) => void): void;
  close(): void;
}

export interface LiveParts {
  open(): Source;
  /** Loads the list; whatever fails is the caller's to show. */
  refresh(): Promise<void>;
  /** Puts a change into the list; false if the database is not in it. */
  change(change: Change): boolean;
  deleted(id: string): void;
  /** Runs something later, and gives the way to call it off. */
  later(what: () => void, ms: number): () => void;
  onMode(mode: Mode): void;
}

export type Mode = "live" | "polling";

export const pollMs = 2000;

/** Reads an event's data; null if it makes no sense. */
export function read<T>(data: unknown): T | null {
  if (typeof data !== "string") return null;
  try {
    const value: unknown = JSON.parse(data);
    return typeof value === "object" && value !== null && "id" in value ? (value as T) : null;
  } catch {
    return null;
  }
}

/**
 * The stream tells of changes, not of what was before it, so the list is loaded whenever it opens; a change that
 * comes while a load is under way may be newer than the answer, which is then asked for once more.
 */
export class Live {
  private readonly source: Source;
  private loading = false;
  private again = false;
  private ended = false;
  private callOff: (() => void) | null = null;

  constructor(private readonly parts: LiveParts) {
    this.source = parts.open();
    this.source.addEventListener("open", () => {
      this.callOff?.();
      this.callOff = null;
      parts.onMode("live");
      this.look();
    });
    this.source.addEventListener("error", () => {
      // EventSource tries again by itself; meanwhile:
      parts.onMode("polling");
      this.poll();
    });
    this.source.addEventListener("database", (event) => {
      const change = read<Change>(event.data);
      if (change === null || !parts.change(change)) this.look();
      else this.again ||= this.loading;
    });
    this.source.addEventListener("deleted", (event) => {
      const gone = read<{ id: string }>(event.data);
      if (gone === null) return this.look();
      parts.deleted(gone.id);
      this.again ||= this.loading;
    });
    // The server has left something out.
    this.source.addEventListener("refresh", () => this.look());
    this.look();
    this.poll();
  }

  /** Loads the list now, or once more after the load that is under way. */
  look(): void {
    if (this.ended) return;
    if (this.loading) {
      this.again = true;
      return;
    }
    this.loading = true;
    void this.parts.refresh().finally(() => {
      this.loading = false;
      if (this.again) {
        this.again = false;
        this.look();
      }
    });
  }

  private poll(): void {
    if (this.ended || this.callOff !== null) return;
    this.callOff = this.parts.later(() => {
      this.callOff = null;
      this.look();
      this.poll();
    }, pollMs);
  }

  end(): void {
    this.ended = true;
    this.callOff?.();
    this.source.close();
  }
}
