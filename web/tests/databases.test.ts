import { describe, expect, it } from "vitest";
import { type Database, actionsIn, ago, eventWords, inOrder, nameFault, stateMeaning, states } from "../src/databases";

describe("names", () => {
  it("takes what the API takes", () => {
    for (const name of ["a", "hello", "0-9", "-", "x".repeat(63)]) expect(nameFault(name)).toBeNull();
  });
  it("says what is wrong with others", () => {
    expect(nameFault("")).toBe("Give it a name.");
    expect(nameFault("x".repeat(64))).toContain("this one has 64");
    expect(nameFault("Hello")).toContain("“H”");
    expect(nameFault("a b")).toContain("“ ”");
    expect(nameFault("a🐭")).toContain("“🐭”");
  });
});

describe("actions", () => {
  it("fit the state", () => {
    expect(actionsIn("running")).toEqual(["suspend", "delete"]);
    expect(actionsIn("suspended")).toEqual(["resume", "delete"]);
    expect(actionsIn("stopped")).toEqual(["resume", "delete"]);
    expect(actionsIn("deleting")).toEqual([]);
  });
  it("never offer suspend and resume together, and every state has a meaning", () => {
    for (const state of states) {
      const actions = actionsIn(state);
      expect(actions.includes("suspend") && actions.includes("resume")).toBe(false);
      expect(stateMeaning[state]).not.toBe("");
    }
  });
});

describe("order", () => {
  const database = (name: string, created_at: string): Database => ({
    id: name,
    name,
    created_at,
    plan: "free",
    pg_version: 17,
    state: "running",
  });
  it("is newest first, then by name, and leaves its input alone", () => {
    const list = [database("b", "2026-01-01"), database("a", "2026-01-01"), database("c", "2026-01-02")];
    expect(inOrder(list).map((one) => one.name)).toEqual(["c", "a", "b"]);
    expect(list.map((one) => one.name)).toEqual(["b", "a", "c"]);
  });
});

describe("ago", () => {
  const now = new Date("2026-01-10T12:00:00Z");
  it.each([
    ["2026-01-10T11:59:50Z", "just now"],
    ["2026-01-10T12:00:05Z", "just now"],
    ["2026-01-10T11:59:00Z", "1 minute ago"],
    ["2026-01-10T11:00:00Z", "1 hour ago"],
    ["2026-01-09T12:00:00Z", "yesterday"],
    ["2026-01-03T12:00:00Z", "7 days ago"],
    ["not a time", "not a time"],
  ])("%s is %s", (created, words) => expect(ago(created, now)).toBe(words));
});

describe("events", () => {
  it("are told in words, and a newer server's by their name", () => {
    expect(eventWords("hung")).toContain("watchdog");
    expect(eventWords("from_the_future")).toBe("from the future");
  });
});
