// A Dormouse server of the test's own: free ports, a home of its own with the image that `make image` built.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const top = fileURLToPath(new URL("../..", import.meta.url));
const program = process.env.DORMOUSE_TEST_PROGRAM ?? join(top, "target/release/dormouse");

/** The one of `make oracle`. */
export const psql = join(top, "images/.build/oracle/bin/psql");

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
  const { port } = server.address() as AddressInfo;
  await new Promise((closed) => server.close(closed));
  return port;
}

/** Why the tests of the whole cannot run here, or null. Where CI=true they must. */
export function skipped(): string | null {
  const reason = existsSync("/dev/kvm") ? null : "skipped: no /dev/kvm";
  if (reason !== null && process.env.CI === "true") throw new Error("no /dev/kvm, and CI=true");
  if (reason !== null) process.stderr.write(`${reason}\n`);
  return reason;
}

export class Server {
  private constructor(
    readonly home: string,
    readonly base: string,
    private readonly environment: NodeJS.ProcessEnv,
    private child: ChildProcess | null,
  ) {}

  static async start(): Promise<Server> {
    const built = process.env.DORMOUSE_TEST_IMAGES || resolve(top, process.env.DORMOUSE_HOME || ".dormouse");
    if (!existsSync(program)) throw new Error(`${program} is missing: run \`make server\` first`);
    if (!existsSync(join(built, "images/current-17"))) throw new Error(`${built} has no image: run \`make image\` first`);
    // Beside the image, so that links to it can be made; the system's temporary folder may be another disk.
    const home = mkdtempSync(join(existsSync(join(top, "target")) ? join(top, "target") : tmpdir(), "console-"));
    for (const part of ["images", "templates"]) {
      try {
        execFileSync("cp", ["-al", join(built, part), home], { stdio: "ignore" });
      } catch {
        // Another file system.
        rmSync(join(home, part), { recursive: true, force: true });
        execFileSync("cp", ["-a", "--sparse=always", join(built, part), home]);
      }
    }
    const api = `127.0.0.1:${await freePort()}`;
    const server = new Server(
      home,
      `http://${api}`,
      {
        ...process.env,
        DORMOUSE_HOME: home,
        DORMOUSE_API_LISTEN: api,
        DORMOUSE_POOLER_LISTEN: `127.0.0.1:${await freePort()}`,
        DORMOUSE_CONSOLE_PATH: join(top, "web/dist"),
      },
      null,
    );
    await server.run();
    return server;
  }

  async run(): Promise<void> {
    const child = spawn(program, ["up"], { env: this.environment, cwd: this.home, stdio: ["ignore", "pipe", "pipe"] });
    let said = "";
    child.stdout.on("data", (text: Buffer) => (said += text.toString()));
    child.stderr.on("data", (text: Buffer) => (said += text.toString()));
    this.child = child;
    for (let attempt = 0; attempt < 600; attempt++) {
      if (child.exitCode !== null) throw new Error(`the server ended with ${child.exitCode}:\n${said}`);
      const health = await fetch(`${this.base}/healthz`).catch(() => null);
      if (health?.ok) return;
      await new Promise((next) => setTimeout(next, 100));
    }
    throw new Error(`the server is not ready:\n${said}`);
  }

  get adminKey(): string {
    return readFileSync(join(this.home, "admin.key"), "utf8").trim();
  }

  /** Runs `dormouse` and gives what it printed. */
  command(...line: string[]): string {
    return execFileSync(program, line, { env: this.environment, cwd: this.home, encoding: "utf8" });
  }

  /** Ctrl-C, and waits for the end. */
  async stop(): Promise<void> {
    const child = this.child;
    if (child === null || child.exitCode !== null) return;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGINT");
    await ended;
    this.child = null;
  }

  async remove(): Promise<void> {
    await this.stop();
    rmSync(this.home, { recursive: true, force: true });
  }
}
