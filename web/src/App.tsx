import { useCallback, useEffect, useState } from "react";
import { ApiError, type Session, session } from "./api";
import { Console } from "./Console";
import { SignIn } from "./SignIn";

type Page = { name: "asking" } | { name: "out"; reason: string | null } | { name: "in"; session: Session };

/** Which of the two pages: the cookie is HttpOnly, so the server is asked. */
export function App() {
  const [page, setPage] = useState<Page>({ name: "asking" });

  useEffect(() => {
    session.show().then(
      (opened) => setPage({ name: "in", session: opened }),
      (error: unknown) => {
        const nobody = error instanceof ApiError && error.status === 401;
        setPage({ name: "out", reason: nobody ? null : String((error as Error).message) });
      },
    );
  }, []);

  const expired = useCallback(
    () => setPage({ name: "out", reason: "Your session has ended. Sign in again." }),
    [],
  );

  async function signOut() {
    try {
      await session.close();
      setPage({ name: "out", reason: null });
    } catch (error) {
      setPage({ name: "out", reason: `The server did not confirm the sign-out: ${(error as Error).message}` });
    }
  }

  switch (page.name) {
    case "asking":
      return null;
    case "out":
      return <SignIn reason={page.reason} onOpen={(opened) => setPage({ name: "in", session: opened })} />;
    case "in":
      return <Console session={page.session} onSignOut={signOut} onExpired={expired} />;
  }
}
