// Keeps the list fresh: the server's events while there is a stream, polling while there is none.

/** As much of EventSource as is used; tests give their own. */
export interface Source {
  addEventListener(name: string, listener: () => void): void;
  close(): void;
}

export interface LiveParts {
  open(): Source;
  /** Loads the list; whatever fails is the caller's to show. */
  refresh(): Promise<void>;
  /** Runs something later, and gives the way to call it off. */
  later(what: () => void, ms: number): () => void;
  onMode(mode: Mode): void;
}

export type Mode = "live" | "polling";

export const pollMs = 2000;
/** Names of the server's events, and the one without a name. */
export const eventNames = ["database", "deleted", "message"];

/**
 * Any event means "look again": the list is small, and a state that was missed while the stream was down needs no
 * bookkeeping. Events that come while a load is under way make for one more, however many they are.
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
    for (const name of eventNames) this.source.addEventListener(name, () => this.look());
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
