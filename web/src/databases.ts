// What is known of a database and what may be done with it. No I/O.

export const states = [
  "creating",
  "running",
  "suspending",
  "suspended",
  "resuming",
  "stopped",
  "deleting",
  "error",
] as const;
export type State = (typeof states)[number];

export interface Database {
  id: string;
  name: string;
  state: State;
  plan: string;
  /** Major version of PostgreSQL. */
  pg_version: number;
  created_at: string;
  /** Why it is stopped or in error, in a sentence. */
  message?: string | null;
  /** The owner's name; only an admin is told. */
  tenant?: string;
}

export interface CreatedDatabase extends Database {
  connection_uri: string;
}

/** Something that happened to a database. */
export interface DatabaseEvent {
  at: string;
  kind: string;
  message: string | null;
}

/** A kind of event in words; of a newer server's, its own name. */
export function eventWords(kind: string): string {
  const words: Record<string, string> = {
    created: "Created",
    started_cold: "Started cold, from its files",
    snapshot_refused: "Its snapshot did not fit; started cold",
    hung: "Made no progress; ended by the watchdog",
    died: "Its virtual machine ended unexpectedly",
    wake_failed: "Could not be woken",
    suspend_failed: "Could not be put to sleep",
    pack_failed: "Not packed, and sleeps on as it was",
    settings_undone: "A setting that kept it from starting was undone",
    image_adopted: "Moved to a new image",
    restarted: "Shut down, as asked",
  };
  return words[kind] ?? kind.replaceAll("_", " ");
}

export type Action = "suspend" | "resume" | "delete";

/** The actions that make sense in a state; the server has the last word. */
export function actionsIn(state: State): Action[] {
  switch (state) {
    case "running":
      return ["suspend", "delete"];
    case "suspended":
    case "stopped":
      return ["resume", "delete"];
    case "error":
      return ["resume", "delete"];
    case "suspending":
    case "resuming":
      return ["delete"];
    case "creating":
    case "deleting":
      return [];
  }
}

/** What a state means to somebody who has not read the documentation. */
export const stateMeaning: Record<State, string> = {
  creating: "being made",
  running: "awake: it has a process and memory",
  suspending: "falling asleep",
  suspended: "asleep: no process, no memory; the next query wakes it",
  resuming: "waking up",
  stopped: "without a snapshot: the next query starts it from its files, which takes longer",
  deleting: "being deleted",
  error: "needs attention",
};

/** Newest first, then by name, so that a new database is seen where it was made. */
export function inOrder(list: Database[]): Database[] {
  return [...list].sort(
    (one, other) => other.created_at.localeCompare(one.created_at) || one.name.localeCompare(other.name),
  );
}

/** Why a name is refused, or null: 1 to 63 of a-z, 0-9 and "-". */
export function nameFault(name: string): string | null {
  if (name === "") return "Give it a name.";
  if (name.length > 63) return `A name has at most 63 characters; this one has ${name.length}.`;
  const wrong = [...name].find((character) => !/[a-z0-9-]/.test(character));
  if (wrong !== undefined) return `“${wrong}” cannot be in a name: use a–z, 0–9 and “-”.`;
  return null;
}

/** How long ago, in words; the exact time is for a tooltip. */
export function ago(created: string, now: Date): string {
  const seconds = Math.round((now.getTime() - new Date(created).getTime()) / 1000);
  if (Number.isNaN(seconds)) return created;
  const words = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  if (seconds < 45) return "just now";
  if (seconds < 2700) return words.format(-Math.max(1, Math.round(seconds / 60)), "minute");
  if (seconds < 79_200) return words.format(-Math.max(1, Math.round(seconds / 3600)), "hour");
  return words.format(-Math.max(1, Math.round(seconds / 86_400)), "day");
}
