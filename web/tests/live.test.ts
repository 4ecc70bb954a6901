import { describe, expect, it } from "vitest";
import { type Change, Live, type Mode, type Source, pollMs, read } from "../src/live";

/** Everything that Live is given, by hand. */
class Stage {
  listeners = new Map<string, (event: { data?: unknown }) => void>();
  known = new Set(["db_1"]);
  changes: Change[] = [];
  gone: string[] = [];
  closed = false;
  timers: { what: () => void; ms: number; off: boolean }[] = [];
  modes: Mode[] = [];
  loads = 0;
  finish: (() => void)[] = [];

  open(): Source {
    return {
      addEventListener: (name, listener) => void this.listeners.set(name, listener),
      close: () => void (this.closed = true),
    };
  }
  start() {
    return new Live({
      open: () => this.open(),
      onMode: (mode) => void this.modes.push(mode),
      later: (what, ms) => {
        const timer = { what, ms, off: false };
        this.timers.push(timer);
        return () => void (timer.off = true);
      },
      change: (change) => {
        this.changes.push(change);
        return this.known.has(change.id);
      },
      deleted: (id) => void this.gone.push(id),
      refresh: () => {
        this.loads++;
        return new Promise((resolve) => this.finish.push(resolve));
      },
    });
  }
  /** Answers the load that is under way. */
  async answer() {
    this.finish.shift()!();
    await new Promise((resolve) => setImmediate(resolve));
  }
  event(name: string, data?: unknown) {
    this.listeners.get(name)!({ data: JSON.stringify(data) });
  }
  /** Lets the time of the next timer come. */
  tick() {
    const due = this.timers.filter((timer) => !timer.off);
    this.timers = [];
    for (const timer of due) timer.what();
    return due.length;
  }
}

describe("read", () => {
  it("takes objects with an id alone", () => {
    expect(read('{"id":"db_1"}')).toEqual({ id: "db_1" });
    for (const data of [undefined, "", "null", "7", "{}", "{"]) expect(read(data)).toBeNull();
  });
});

describe("Live", () => {
  it("loads at once and polls until the stream is open", async () => {
    const stage = new Stage();
    stage.start();
    expect(stage.loads).toBe(1);
    await stage.answer();
    expect(stage.timers[0]!.ms).toBe(pollMs);
    expect(stage.tick()).toBe(1);
    expect(stage.loads).toBe(2);
  });

  it("stops polling while the stream lives, and loads what it missed", async () => {
    const stage = new Stage();
    stage.start();
    await stage.answer();
    stage.event("open");
    expect(stage.modes).toEqual(["live"]);
    expect(stage.loads).toBe(2);
    await stage.answer();
    expect(stage.tick()).toBe(0);
  });

  it("polls again when the stream breaks, with one timer however often it does", async () => {
    const stage = new Stage();
    stage.start();
    await stage.answer();
    stage.event("open");
    await stage.answer();
    stage.event("error");
    stage.event("error");
    expect(stage.modes.at(-1)).toBe("polling");
    expect(stage.tick()).toBe(1);
  });

  it("puts a change into the list without a load", async () => {
    const stage = new Stage();
    stage.start();
    await stage.answer();
    stage.event("database", { id: "db_1", state: "suspended", message: null });
    stage.event("deleted", { id: "db_1" });
    expect(stage.changes).toEqual([{ id: "db_1", state: "suspended", message: null }]);
    expect(stage.gone).toEqual(["db_1"]);
    expect(stage.loads).toBe(1);
  });

  it("loads for a database it does not know, when it is told to, and when it understands nothing", async () => {
    const stage = new Stage();
    stage.start();
    await stage.answer();
    stage.event("database", { id: "db_new", state: "creating", message: null });
    expect(stage.loads).toBe(2);
    await stage.answer();
    stage.event("refresh", {});
    expect(stage.loads).toBe(3);
    await stage.answer();
    stage.event("deleted", "what?");
    expect(stage.loads).toBe(4);
  });

  it("makes one more load of many reasons, also of a change that came during a load", async () => {
    const stage = new Stage();
    stage.start();
    for (let n = 0; n < 10; n++) stage.event("database", { id: "db_1", state: "running", message: null });
    stage.event("refresh", {});
    expect(stage.loads).toBe(1);
    await stage.answer();
    expect(stage.loads).toBe(2);
    await stage.answer();
    expect(stage.loads).toBe(2);
  });

  it("does nothing after its end", async () => {
    const stage = new Stage();
    const live = stage.start();
    await stage.answer();
    live.end();
    expect(stage.closed).toBe(true);
    expect(stage.tick()).toBe(0);
    live.look();
    expect(stage.loads).toBe(1);
  });
});
