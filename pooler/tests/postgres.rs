//! Real Postgres, real clients, with sleeps in between. Postgres stays awake behind a relay: what is tested is that the
//! pooler and its bookkeeping are right for what real drivers send.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use support::relay::{Postgres, Relay};
use support::{PASSWORD, World, code};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio_postgres::{AsyncMessage, NoTls};

struct Real {
    w: Arc<World>,
    relay: Relay,
    slept: Arc<AtomicUsize>,
    _postgres: Postgres,
}

impl Real {
    async fn new() -> Option<Real> {
        let postgres = tokio::task::spawn_blocking(Postgres::start).await.unwrap()?;
        let w = World::new().await;
        let relay = Relay::start(w.dir.path().join("relay.sock"), postgres.socket());
        *w.host.elsewhere.lock().unwrap() = Some(relay.awake.clone());
        Some(Real { w: Arc::new(w), relay, slept: Arc::default(), _postgres: postgres })
    }

    /// Puts it to sleep, now.
    async fn sleep(&self) {
        loop {
            let counts = self.w.quiesce().await;
            if self.relay.suspend(&counts).is_ok() {
                self.w.sessions.suspended(self.w.host.database);
                self.slept.fetch_add(1, Ordering::SeqCst);
                return;
            }
            self.w.sessions.release(self.w.host.database);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Puts it to sleep whenever that is allowed, until told to stop.
    fn sleep_often(&self) -> Arc<AtomicBool> {
        let stop = Arc::new(AtomicBool::new(false));
        let (w, relay, slept, told) = (self.w.clone(), self.relay.clone(), self.slept.clone(), stop.clone());
        tokio::spawn(async move {
            while !told.load(Ordering::SeqCst) {
                if let Ok(counts) = w.sessions.quiesce(w.host.database) {
                    if relay.suspend(&counts).is_ok() {
                        w.sessions.suspended(w.host.database);
                        slept.fetch_add(1, Ordering::SeqCst);
                    } else {
                        w.sessions.release(w.host.database);
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        stop
    }

    fn psql(&self, program: &str, tls: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("PGPASSWORD", PASSWORD)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.w.address.port().to_string())
            .env("PGUSER", self.w.user())
            .env("PGDATABASE", "app")
            .env("PGSSLMODE", tls)
            .stdin(Stdio::null());
        command
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_s_whole_repertoire_survives_sleeps() {
    let Some(real) = Real::new().await else { return };
    let mut client = real.w.connect().await;

    // Session state: a temporary table, a setting, a prepared statement, an advisory lock.
    client.batch_execute("create temp table t (n int, s text); set application_name = 'kept'").await.unwrap();
    client.batch_execute("select pg_advisory_lock(7)").await.unwrap();
    let insert = client.prepare("insert into t values ($1, $2)").await.unwrap();
    for n in 0..5i32 {
        real.sleep().await;
        assert_eq!(client.execute(&insert, &[&n, &"x".repeat(n as usize * 1000)]).await.unwrap(), 1);
    }
    real.sleep().await;
    let row = client.query_one("select count(*), sum(length(s)), current_setting('application_name') from t", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, &str>(2)), (5, 10_000, "kept"));

    // An open transaction, and a portal in it.
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("select generate_series(1, 10)", &[]).await.unwrap();
    real.sleep().await;
    assert_eq!(transaction.query_portal(&portal, 4).await.unwrap().len(), 4);
    real.sleep().await;
    assert_eq!(transaction.query_portal(&portal, 0).await.unwrap().len(), 6);
    transaction.commit().await.unwrap();

    // An error in a statement with parameters, then a failed transaction.
    assert_eq!(code(&client.query("select 1 / $1::int", &[&0i32]).await.unwrap_err()), "22012");
    real.sleep().await;

    // COPY in and out, by the extended protocol, with its two Syncs.
    use futures_util::SinkExt;
    let sink = client.copy_in::<_, bytes::Bytes>("copy t from stdin").await.unwrap();
    futures_util::pin_mut!(sink);
    for n in 0..1000 {
        sink.send(format!("{n}\trow\n").into()).await.unwrap();
    }
    assert!(real.w.sessions.quiesce(real.w.host.database).is_err());
    assert_eq!(sink.finish().await.unwrap(), 1000);
    real.sleep().await;
    let sink = client.copy_in::<_, bytes::Bytes>("copy t from stdin").await.unwrap();
    futures_util::pin_mut!(sink);
    sink.send("not a number\trow\n".into()).await.unwrap();
    assert_eq!(code(&sink.finish().await.unwrap_err()), "22P02");
    real.sleep().await;
    use futures_util::StreamExt;
    let out = client.copy_out("copy t to stdout").await.unwrap();
    let lines: Vec<_> = out.collect().await;
    assert_eq!(lines.len(), 1005);
    real.sleep().await;

    // The lock is still ours.
    let row = client.query_one("select pg_advisory_unlock(7)", &[]).await.unwrap();
    assert!(row.get::<_, bool>(0));

    // Cancel.
    let token = client.cancel_token();
    let running = tokio::spawn(async move {
        let error = client.batch_execute("select pg_sleep(60)").await.unwrap_err();
        (client, error)
    });
    let watcher = real.w.connect().await;
    while watcher.query("select 1 from pg_stat_activity where query like '%pg_sleep(60)' and state = 'active'", &[]).await.unwrap().is_empty() {}
    token.cancel_query(NoTls).await.unwrap();
    let (client, error) = running.await.unwrap();
    assert_eq!(code(&error), "57014");
    real.sleep().await;
    assert_eq!(client.query_one("select 42", &[]).await.unwrap().get::<_, i32>(0), 42);
    assert!(real.slept.load(Ordering::SeqCst) >= 13);
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_reach_a_held_listener() {
    let Some(real) = Real::new().await else { return };
    let (listener, mut connection) = real.w.config().connect(NoTls).await.unwrap();
    let (to, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(n) = message {
                let _ = to.send(n.payload().to_owned());
            }
        }
    });
    listener.batch_execute("listen news").await.unwrap();
    let speaker = real.w.connect().await;
    for n in 0..10 {
        real.sleep().await;
        speaker.batch_execute(&format!("notify news, '{n}'")).await.unwrap();
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), heard.recv()).await.unwrap().unwrap(), n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_killed_in_the_sleep_loses_its_backend_at_the_next_wake() {
    let Some(real) = Real::new().await else { return };
    let watcher = real.w.connect().await;
    let gone = real.w.connect().await;
    gone.batch_execute("begin; select pg_advisory_xact_lock(9)").await.unwrap();
    real.sleep().await;
    drop(gone);
    real.w.until("it to be gone", || real.w.sessions.active(real.w.host.database).clients == 1).await;
    // Its lock is given up, because its backend ends.
    watcher.batch_execute("select pg_advisory_lock(9)").await.unwrap();
    real.w.until("one session", || real.relay.sessions() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_connects_in_every_way_and_reads_the_errors() {
    let Some(real) = Real::new().await else { return };
    let run = |command: &mut Command| {
        let out = command.output().expect("psql (apt-get install postgresql-client)");
        (out.status.success(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let blocking = |mut command: Command, args: &[&str]| {
        command.args(args);
        tokio::task::spawn_blocking(move || run(&mut command))
    };
    for (tls, uses_tls) in [("disable", "f"), ("prefer", "t"), ("require", "t")] {
        let (ok, out, err) = blocking(real.psql("psql", tls), &["-XAtc", "\\conninfo", "-c", "select current_user"]).await.unwrap();
        assert!(ok, "{err}");
        assert_eq!(out.contains("SSL connection"), uses_tls == "t", "{out}");
        assert!(out.ends_with("app\n"), "{out}");
    }
    // Channel binding to the certificate that is really served.
    let mut bound = real.psql("psql", "require");
    bound.env("PGCHANNELBINDING", "require");
    let (ok, out, err) = blocking(bound, &["-XAtc", "select 7"]).await.unwrap();
    assert_eq!((ok, out.as_str()), (true, "7\n"), "{err}");
    // The certificate can be verified.
    let mut verified = real.psql("psql", "verify-full");
    verified.env("PGSSLROOTCERT", real.w.settings.tls_dir.join("server.crt")).env("PGHOST", "localhost");
    verified.env("PGHOSTADDR", "127.0.0.1");
    let (ok, _, err) = blocking(verified, &["-XAtc", "select 7"]).await.unwrap();
    assert!(ok, "{err}");

    let mut wrong = real.psql("psql", "prefer");
    wrong.env("PGPASSWORD", "wrong");
    let (ok, _, err) = blocking(wrong, &["-Xc", "select 1"]).await.unwrap();
    assert!(!ok && err.contains("password authentication failed for user \"app.db_"), "{err}");
    let (ok, _, err) = blocking(real.psql("psql", "prefer"), &["-Xc", "select 1", "nowhere"]).await.unwrap();
    assert!(!ok && err.contains("database \"nowhere\" does not exist"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_psql_is_held() {
    let Some(real) = Real::new().await else { return };
    let mut command = tokio::process::Command::from(real.psql("psql", "require"));
    let mut psql = command.arg("-XAtq").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = psql.stdin.take().unwrap();
    let mut output = BufReader::new(psql.stdout.take().unwrap()).lines();
    input.write_all(b"create temp table t as select 0 n;\n select 'made';\n").await.unwrap();
    assert_eq!(output.next_line().await.unwrap().unwrap(), "made");
    for n in 1..=10 {
        real.sleep().await;
        input.write_all(b"update t set n = n + 1;\n select n from t;\n").await.unwrap();
        assert_eq!(output.next_line().await.unwrap().unwrap(), n.to_string());
    }
    real.sleep().await;
    let wakes = real.w.wakes();
    drop(input);
    assert!(psql.wait().await.unwrap().success());
    assert_eq!(real.w.wakes(), wakes, "leaving wakes nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_runs_with_sleeps_in_between() {
    let Some(real) = Real::new().await else { return };
    let bin = support::relay::programs().unwrap().join("pgbench");
    let bin = bin.to_str().unwrap();
    let run = |mut command: Command| tokio::task::spawn_blocking(move || command.output().unwrap());
    let mut initialise = real.psql(bin, "disable");
    initialise.args(["-i", "-s", "1", "-q"]);
    assert!(run(initialise).await.unwrap().status.success());
    let stop = real.sleep_often();
    for mode in ["simple", "extended", "prepared"] {
        let mut bench = real.psql(bin, "disable");
        // A rate, so that there are pauses to sleep in.
        bench.args(["-c", "4", "-j", "1", "-T", "3", "-R", "100", "-M", mode]);
        let out = run(bench).await.unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{text}");
        assert!(text.contains("number of failed transactions: 0"), "{text}");
    }
    stop.store(true, Ordering::SeqCst);
    let slept = real.slept.load(Ordering::SeqCst);
    assert!(slept > 100, "slept only {slept} times");
    assert_eq!(real.w.sessions.metrics().lost.get(), 0);
}
