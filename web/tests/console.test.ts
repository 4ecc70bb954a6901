// The console in headless Chromium, against a real server with real databases.
import { execFile, execFileSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { type Browser, type BrowserContext, type Page, chromium } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { Server, psql, skipped } from "./server";

const browserPath = process.env.CHROMIUM ?? "/usr/bin/chromium";
/** A folder for pictures of each page, if somebody wants to look at them. */
const pictures = process.env.DORMOUSE_PICTURES;
const asleepWithin = { timeout: 30_000 };

describe.skipIf(skipped() !== null)("console", () => {
  let server: Server;
  let browser: Browser;
  let context: BrowserContext;
  let page: Page;
  let faults: string[];

  beforeAll(async () => {
    if (!existsSync(browserPath)) throw new Error(`${browserPath} is missing: apt-get install chromium`);
    server = await Server.start();
    browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox", "--disable-gpu"] });
  });
  afterAll(async () => {
    await browser?.close();
    await server?.remove();
  });
  beforeEach(async () => {
    context = await browser.newContext({ viewport: { width: 1100, height: 760 } });
    page = await context.newPage();
    faults = [];
    page.on("pageerror", (error) => faults.push(error.message));
  });
  afterEach(async () => {
    await context.close();
    expect(faults).toEqual([]);
  });

  const picture = async (name: string) => {
    if (pictures === undefined) return;
    mkdirSync(pictures, { recursive: true });
    await page.screenshot({ path: join(pictures, `${name}.png`) });
  };
  const signIn = async (key: string) => {
    await page.goto(server.base);
    await page.getByLabel("Key").fill(key);
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("heading", { name: "Databases" }).waitFor();
  };
  const create = async (name: string) => {
    await page.getByLabel("New database").fill(name);
    await page.getByRole("button", { name: "Create" }).click();
    const field = page.getByLabel("Connection string");
    await page.getByRole("heading", { name: `${name} is ready` }).waitFor();
    return field.inputValue();
  };
  const row = (name: string) => page.locator("tbody tr", { has: page.getByRole("rowheader", { name }) });
  const remove = async (name: string) => {
    await page.getByRole("button", { name: `Delete ${name}` }).click();
    await page.getByRole("dialog").getByRole("button", { name: `Delete ${name}` }).click();
    await row(name).waitFor({ state: "detached" });
  };
  const query = (uri: string, sql: string) =>
    execFileSync(psql, ["-X", "-A", "-t", "-c", sql, uri], { encoding: "utf8" }).trim();

  it("refuses a wrong key in words, and keeps the session from scripts", async () => {
    await page.goto(server.base);
    await picture("sign-in");
    await page.getByLabel("Key").fill("not the key");
    await page.keyboard.press("Enter");
    await page.getByRole("alert").waitFor();
    expect(await page.getByRole("alert").textContent()).toBe("The server does not know this key.");
    await page.getByLabel("Key").fill(server.adminKey);
    await page.keyboard.press("Enter");
    await page.getByText("No database yet.").waitFor();
    await picture("empty");
    const cookies = await context.cookies();
    expect(cookies).toHaveLength(1);
    expect(cookies[0]).toMatchObject({ httpOnly: true, sameSite: "Strict" });
    expect(await page.evaluate(() => document.cookie + JSON.stringify({ ...localStorage, ...sessionStorage }))).toBe("{}");
    await page.reload();
    await page.getByText("No database yet.").waitFor();
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("Key").waitFor();
    await page.reload();
    await page.getByLabel("Key").waitFor();
  });

  it("creates a database whose connection string works and is shown once", async () => {
    await signIn(server.adminKey);
    const uri = await create("hello");
    await picture("created");
    expect(query(uri, "select 6 * 7")).toBe("42");
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    await page.getByRole("button", { name: "Copy" }).click();
    await page.getByRole("button", { name: "Copied" }).waitFor();
    expect(await page.evaluate(() => navigator.clipboard.readText())).toBe(uri);
    await page.getByRole("button", { name: "Done" }).click();
    await page.reload();
    await row("hello").waitFor();
    expect(await page.content()).not.toContain("postgresql://");
    await remove("hello");
  });

  it("shows a database fall asleep, wake by a query, and obey its buttons", async () => {
    await signIn(server.adminKey);
    const uri = await create("sleepy");
    await page.getByRole("button", { name: "Done" }).click();
    const state = row("sleepy").locator(".state");
    const shows = (name: string) => state.and(page.locator(`.${name}`)).waitFor(asleepWithin);
    await shows("suspended");
    await page.getByText("live", { exact: true }).waitFor();
    await picture("asleep");
    const slow = new Promise<void>((done, failed) =>
      execFile(psql, ["-X", "-c", "select pg_sleep(3)", uri], (error) => (error ? failed(error) : done())),
    );
    await shows("running");
    await picture("awake");
    await slow;
    await shows("suspended");
    await page.getByRole("button", { name: "Resume sleepy" }).click();
    await shows("running");
    await page.getByRole("button", { name: "Suspend sleepy" }).click();
    await shows("suspended");
    await remove("sleepy");
  });

  it("tells what happened to a database", async () => {
    await signIn(server.adminKey);
    await create("eventful");
    await page.getByRole("button", { name: "Done" }).click();
    server.command("db", "restart", "eventful");
    const button = page.getByRole("button", { name: "Events of eventful" });
    await button.click();
    const dialog = page.getByRole("dialog", { name: "Events of eventful" });
    await dialog.getByText("Created").waitFor();
    expect(await dialog.locator(".kind").allTextContents()).toEqual(["Shut down, as asked", "Created"]);
    await picture("events");
    await page.keyboard.press("Escape");
    await dialog.waitFor({ state: "detached" });
    expect(await button.evaluate((element) => element === document.activeElement)).toBe(true);
    await remove("eventful");
  });

  it("asks before a delete, and Escape keeps the database", async () => {
    await signIn(server.adminKey);
    await create("keeper");
    await page.getByRole("button", { name: "Done" }).click();
    const button = page.getByRole("button", { name: "Delete keeper" });
    await button.focus();
    await page.keyboard.press("Enter");
    const dialog = page.getByRole("dialog", { name: "Delete keeper?" });
    await dialog.waitFor();
    await picture("delete");
    // The harmless button has the focus.
    expect(await page.evaluate(() => document.activeElement?.textContent)).toBe("Cancel");
    await page.keyboard.press("Escape");
    await dialog.waitFor({ state: "detached" });
    expect(await row("keeper").count()).toBe(1);
    expect(await button.evaluate((element) => element === document.activeElement)).toBe(true);
    await remove("keeper");
  });

  it("says what is wrong with a name, in the server's words where only it can know", async () => {
    await signIn(server.adminKey);
    await page.getByLabel("New database").fill("Not this");
    await page.getByRole("button", { name: "Create" }).click();
    await page.getByRole("alert").getByText("“N” cannot be in a name").waitFor();
    await create("twice");
    await page.getByLabel("New database").fill("twice");
    await page.getByRole("button", { name: "Create" }).click();
    const notice = page.locator(".notice");
    await notice.waitFor();
    expect(await notice.textContent()).toContain("twice");
    await picture("error");
    await page.getByRole("button", { name: "Dismiss this message" }).click();
    await notice.waitFor({ state: "detached" });
    await remove("twice");
  });

  it("shows a tenant its own databases alone", async () => {
    const key = server.command("tenant", "create", "ada").trim().split(/\s+/).at(-1)!;
    await signIn(server.adminKey);
    await create("the-operators");
    await page.getByRole("button", { name: "Sign out" }).click();
    await signIn(key);
    await page.getByText("No database yet.").waitFor();
    await create("adas");
    await row("adas").waitFor();
    expect(await page.locator("tbody tr").count()).toBe(1);
    await remove("adas");
  });

  it("says that the server is away, and comes back with it", async () => {
    await signIn(server.adminKey);
    await create("patient");
    await server.stop();
    await page.getByText("server unreachable").waitFor();
    await picture("unreachable");
    await server.run();
    await page.getByText("live", { exact: true }).waitFor(asleepWithin);
    await row("patient").waitFor();
    await remove("patient");
  });

  it("works in the dark and on a telephone", async () => {
    await page.emulateMedia({ colorScheme: "dark" });
    await signIn(server.adminKey);
    await create("in-the-dark");
    await picture("dark");
    await page.setViewportSize({ width: 380, height: 760 });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    expect(wide).toBeLessThanOrEqual(0);
    await picture("telephone");
    await remove("in-the-dark");
  });
});
