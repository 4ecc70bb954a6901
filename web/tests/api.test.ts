import { afterEach, describe, expect, it, vi } from "vitest";
import { ApiError, databases, readProblem } from "../src/api";

afterEach(() => vi.unstubAllGlobals());

const answer = (status: number, body: string) =>
  vi.fn<typeof fetch>(async () => new Response(status === 204 ? null : body, { status }));

describe("errors", () => {
  it("reads problem+json", () => {
    const error = readProblem(409, '{"title":"Name taken","detail":"Choose another.","status":409}');
    expect([error.status, error.title, error.detail]).toEqual([409, "Name taken", "Choose another."]);
    expect(error.message).toBe("Name taken: Choose another.");
  });
  it.each(["", "null", "[]", '"text"', '{"error":1}', "<html>bad gateway</html>"])("makes do with %j", (body) => {
    expect(readProblem(502, body).title).toBe("The server answered 502");
  });
  it("does not show a whole page as a message", () => {
    expect(readProblem(500, "x".repeat(5000)).detail).toBe("");
  });
});

describe("calls", () => {
  it("send a name as JSON and give the answer", async () => {
    const fetched = answer(201, '{"id":"db_1","connection_uri":"postgresql://"}');
    vi.stubGlobal("fetch", fetched);
    expect((await databases.create("hello")).connection_uri).toBe("postgresql://");
    const [path, init] = fetched.mock.calls[0]!;
    expect([path, init?.method, init?.body]).toEqual(["/v1/databases", "POST", '{"name":"hello"}']);
  });
  it("send a version of PostgreSQL when there is one to choose", async () => {
    const fetched = answer(201, "{}");
    vi.stubGlobal("fetch", fetched);
    await databases.create("hello", 18);
    expect(fetched.mock.calls[0]![1]?.body).toBe('{"name":"hello","pg_version":18}');
  });
  it("never let an id out of its place in the path", async () => {
    const fetched = answer(204, "");
    vi.stubGlobal("fetch", fetched);
    await databases.delete("../session");
    expect(fetched.mock.calls[0]![0]).toBe("/v1/databases/..%2Fsession");
  });
  it("throw what the server says", async () => {
    vi.stubGlobal("fetch", answer(403, '{"title":"Plan is full","detail":"free allows 3 databases."}'));
    await expect(databases.create("one-more")).rejects.toThrow("Plan is full: free allows 3 databases.");
  });
  it("say so when there is no server", async () => {
    vi.stubGlobal("fetch", async () => {
      throw new TypeError("Failed to fetch");
    });
    const error = await databases.list().catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(ApiError);
    expect((error as ApiError).status).toBe(0);
  });
});
