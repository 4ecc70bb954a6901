//! Sessions held through sleep, and everything that may happen to them meanwhile.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use dormouse_pooler::{Busy, SessionCounts, WakeError};
use support::guest::message;
use support::raw::{Raw, query};
use support::{PASSWORD, World, ask, code, try_ask};
use tokio::sync::Notify;

async fn held(w: &World, n: i64) {
    w.until("clients to be held", || w.sessions.metrics().held.get() == n).await;
}

async fn raw_session(w: &World) -> Raw {
    let mut raw = Raw::connect(w.address).await;
    let user = w.user();
    let messages = raw.log_in(0, &[("user", &user), ("database", "app")], PASSWORD).await;
    assert_eq!(messages.last().unwrap().0, b'Z');
    raw
}

#[tokio::test]
async fn a_session_finds_everything_as_it_left_it() {
    let w = World::new().await;
    let client = w.connect().await;
    ask(&client, "set dormouse").await;
    for round in 1..=5 {
        w.suspend().await;
        held(&w, 1).await;
        assert_eq!(ask(&client, "get").await, "dormouse");
        assert_eq!(w.wakes(), 1 + round);
    }
    assert_eq!(w.sessions.metrics().bound.get(), 5);
    assert_eq!(w.sessions.metrics().lost.get(), 0);
}

#[tokio::test]
async fn a_query_cut_into_single_bytes_is_answered_over_a_sleep() {
    let w = World::new().await;
    let mut raw = raw_session(&w).await;
    for _ in 0..3 {
        w.suspend().await;
        held(&w, 1).await;
        for byte in query("cut to pieces") {
            raw.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
        let mut kinds = vec![];
        while let Some((kind, body)) = raw.receive().await {
            kinds.push(kind);
            if kind == b'D' {
                assert!(body.ends_with(b"cut to pieces"));
            }
            if kind == b'Z' {
                break;
            }
        }
        assert_eq!(kinds, b"TDCZ");
    }
}

#[tokio::test]
async fn half_a_message_keeps_the_database_awake() {
    let w = World::new().await;
    let mut raw = raw_session(&w).await;
    w.quiesce().await;
    w.sessions.release(w.host.database);
    let q = query("in two parts");
    let before = w.sessions.metrics().bytes_to_guest.get();
    raw.send(&q[..7]).await;
    w.until("the first part to be forwarded", || w.sessions.metrics().bytes_to_guest.get() == before + 7).await;
    assert_eq!(w.sessions.quiesce(w.host.database), Err(Busy::Waiting));
    raw.send(&q[7..]).await;
    while raw.receive().await.unwrap().0 != b'Z' {}
    w.suspend().await;
}

#[tokio::test]
async fn a_client_that_waits_for_an_answer_keeps_the_database_awake() {
    let w = World::new().await;
    let mut raw = raw_session(&w).await;
    // Parse without Sync: answered, but the client is in the middle of something.
    raw.send(&message(b'P', b"\0select 1\0\0\0")).await;
    assert_eq!(raw.receive().await.unwrap().0, b'1');
    assert_eq!(w.sessions.quiesce(w.host.database), Err(Busy::Waiting));
    raw.send(&message(b'S', b"")).await;
    assert_eq!(raw.receive().await.unwrap().0, b'Z');
    // A COPY that waits for the client's data.
    raw.send(&query("copy")).await;
    assert_eq!(raw.receive().await.unwrap().0, b'G');
    raw.send(&message(b'd', b"1\n")).await;
    assert_eq!(w.sessions.quiesce(w.host.database), Err(Busy::Waiting));
    assert_eq!(w.sessions.active(w.host.database).waiting, 1);
    raw.send(&message(b'c', b"")).await;
    while raw.receive().await.unwrap().0 != b'Z' {}
    w.suspend().await;
}

#[tokio::test]
async fn all_or_nothing_when_one_of_several_is_busy() {
    let w = World::new().await;
    let (idle, busy) = (w.connect().await, Arc::new(w.connect().await));
    let waiting = tokio::spawn({
        let busy = busy.clone();
        async move { try_ask(&busy, "wait").await }
    });
    w.vm().until(|vm| vm.sessions.values().any(|s| s.queries == ["wait"]).then_some(())).await;
    assert_eq!(w.sessions.quiesce(w.host.database), Err(Busy::Waiting));
    // The idle one was not left stopped.
    assert_eq!(ask(&idle, "still here").await, "still here");
    busy.cancel_token().cancel_query(tokio_postgres::NoTls).await.unwrap();
    assert_eq!(code(&waiting.await.unwrap().unwrap_err()), "57014");
    w.suspend().await;
    assert_eq!(w.sessions.active(w.host.database).clients, 2);
}

#[tokio::test]
async fn a_client_that_speaks_into_a_suspend_is_announced_and_answered_when_it_is_called_off() {
    let w = World::new().await;
    let client = Arc::new(w.connect().await);
    let first = w.quiesce().await;
    assert_eq!(w.sessions.quiesce(w.host.database), Err(Busy::Quiesced));
    let asked = tokio::spawn({
        let client = client.clone();
        async move { ask(&client, "called off").await }
    });
    w.host.spoke_seen.notified().await;
    // Nothing has reached the guest: the counts are still true.
    w.vm().with(|vm| {
        let b = &vm.sessions[&1];
        assert_eq!((b.received, b.sent), (first[0].sent, first[0].received));
        assert!(b.queries.is_empty());
    });
    assert_eq!(w.sessions.quiesce(w.host.database), Err(Busy::Quiesced));
    w.sessions.release(w.host.database);
    assert_eq!(asked.await.unwrap(), "called off");
    assert_eq!(w.wakes(), 1, "it was never asleep");
    assert_eq!(w.host.spoke.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_speaks_into_a_suspend_that_is_committed_wakes_it() {
    let w = World::new().await;
    let client = Arc::new(w.connect().await);
    ask(&client, "set kept").await;
    let counts = w.quiesce().await;
    let asked = tokio::spawn({
        let client = client.clone();
        async move { ask(&client, "get").await }
    });
    w.host.spoke_seen.notified().await;
    w.vm().suspend(&counts).unwrap();
    w.sessions.suspended(w.host.database);
    assert_eq!(asked.await.unwrap(), "kept");
    assert_eq!(w.wakes(), 2);
}

#[tokio::test]
async fn the_vmm_s_end_during_a_suspend_is_not_taken_for_a_crash() {
    let w = World::new().await;
    let client = w.connect().await;
    ask(&client, "set kept").await;
    let counts = w.quiesce().await;
    // The process goes away, and only later does the host say so.
    w.vm().suspend(&counts).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    w.sessions.suspended(w.host.database);
    assert_eq!(ask(&client, "get").await, "kept");
}

/// A held session whose client has asked a database that is being woken. Its VMM listens, and the host has not said so yet.
struct BeingWoken {
    client: Arc<tokio_postgres::Client>,
    asked: tokio::task::JoinHandle<Result<String, tokio_postgres::Error>>,
    /// Told this, the host answers the wake.
    gate: Arc<Notify>,
    socket: std::path::PathBuf,
}

/// `change`: what becomes of the VM in its sleep.
async fn being_woken(w: &World, change: impl FnOnce(&mut support::guest::Inner)) -> BeingWoken {
    let client = Arc::new(w.connect().await);
    ask(&client, "set kept").await;
    let gate = Arc::new(Notify::new());
    *w.host.wake_gate.lock().unwrap() = Some(gate.clone());
    w.suspend().await;
    held(w, 1).await;
    w.vm().with(change);
    let asked = tokio::spawn({
        let client = client.clone();
        async move { try_ask(&client, "get").await }
    });
    // The first was for the connection.
    w.host.wake_seen.notified().await;
    w.host.wake_seen.notified().await;
    BeingWoken { client, asked, gate, socket: w.vm().wake().socket }
}

#[tokio::test]
async fn a_held_session_is_served_before_its_wake_is_answered() {
    let w = World::new().await;
    let BeingWoken { client, asked, gate, socket } = being_woken(&w, |_| {}).await;
    w.sessions.listening(w.host.database, socket);
    assert_eq!(asked.await.unwrap().unwrap(), "kept");
    assert_eq!(w.vm().with(|vm| vm.hellos.last().unwrap()[4]), 3, "bound by its epoch");
    assert_eq!(w.sessions.quiesce(w.host.database), Err(Busy::Starting), "the wake is still under way");
    gate.notify_one();
    w.quiesce().await;
    w.sessions.release(w.host.database);
    assert_eq!(ask(&client, "get").await, "kept");
    assert_eq!((w.sessions.metrics().bound.get(), w.sessions.metrics().lost.get()), (1, 0));
}

/// Such as one that was claimed and ended before it had looked at who came.
#[tokio::test]
async fn what_was_said_to_a_vmm_that_never_answered_is_said_once_to_the_one_that_does() {
    use tokio::io::AsyncReadExt;
    let w = World::new().await;
    let BeingWoken { asked, gate, client: _client, .. } = being_woken(&w, |_| {}).await;
    let mute = w.dir.path().join("mute.sock");
    let listener = tokio::net::UnixListener::bind(&mute).unwrap();
    w.sessions.listening(w.host.database, mute);
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"get\0") {
        assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "the client's words come with the hello");
    }
    drop((stream, listener));
    gate.notify_one();
    assert_eq!(asked.await.unwrap().unwrap(), "kept");
    assert!(w.vm().with(|vm| vm.sessions[&1].queries == ["set kept", "get"]));
}

#[tokio::test]
async fn one_that_is_early_for_another_life_of_the_guest_ends_with_57p01() {
    let w = World::new().await;
    let BeingWoken { asked, gate, socket, .. } = being_woken(&w, |vm| vm.epoch += 1).await;
    let hellos = w.vm().with(|vm| vm.hellos.len());
    w.sessions.listening(w.host.database, socket);
    w.until("it to be refused", || w.vm().with(|vm| vm.hellos.len()) > hellos).await;
    gate.notify_one();
    assert_eq!(code(&asked.await.unwrap().unwrap_err()), "57P01");
    assert!(w.vm().with(|vm| vm.sessions[&1].queries == ["set kept"]), "the other life heard of it");
}

#[tokio::test]
async fn an_answer_to_the_wake_does_not_end_what_is_being_bound() {
    let w = World::new().await;
    let BeingWoken { asked, gate, socket, client: _client } = being_woken(&w, |_| {}).await;
    // Both at once, again and again: whichever comes first, the session goes on.
    for _ in 0..20 {
        w.sessions.listening(w.host.database, socket.clone());
        gate.notify_one();
        tokio::task::yield_now().await;
    }
    assert_eq!(asked.await.unwrap().unwrap(), "kept");
    assert_eq!(w.sessions.metrics().lost.get(), 0);
}

#[tokio::test]
async fn a_statement_begun_before_its_wake_is_answered_can_be_cancelled() {
    let w = World::new().await;
    let BeingWoken { client, asked, gate, socket } = being_woken(&w, |_| {}).await;
    w.sessions.listening(w.host.database, socket);
    assert_eq!(asked.await.unwrap().unwrap(), "kept");
    let token = client.cancel_token();
    let waiting = tokio::spawn(async move { try_ask(&client, "wait").await });
    w.vm().until(|vm| vm.sessions[&1].queries.contains(&"wait".to_owned()).then_some(())).await;
    token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the cancel request was dropped");
    assert_eq!(code(&ended.unwrap().unwrap_err()), "57014");
    gate.notify_one();
}

#[tokio::test]
async fn a_wake_refused_to_one_client_slows_no_other() {
    let w = World::new().await;
    let BeingWoken { client, asked, gate, socket } = being_woken(&w, |_| {}).await;
    w.sessions.listening(w.host.database, socket);
    assert_eq!(asked.await.unwrap().unwrap(), "kept");
    *w.host.wake_gate.lock().unwrap() = None;
    *w.host.wake_error.lock().unwrap() = Some(WakeError::TooMany("too many wait".into()));
    assert_eq!(code(&w.try_connect().await.unwrap_err()), "53300");
    *w.host.wake_error.lock().unwrap() = None;
    *w.host.wake_gate.lock().unwrap() = Some(Arc::new(Notify::new()));
    let greeted = w.vm().with(|vm| vm.hellos.len());
    let config = w.config();
    let connecting = tokio::spawn(async move { config.connect(tokio_postgres::NoTls).await });
    w.until("the guest to be greeted", || w.vm().with(|vm| vm.hellos.len()) > greeted).await;
    connecting.abort();
    drop((client, gate));
}

#[tokio::test]
async fn a_new_session_begins_before_its_wake_is_answered() {
    let w = World::new().await;
    let gate = Arc::new(Notify::new());
    *w.host.wake_gate.lock().unwrap() = Some(gate.clone());
    let config = w.config();
    let connected = tokio::spawn(async move { config.connect(tokio_postgres::NoTls).await });
    w.host.wake_seen.notified().await;
    let awake = w.vm().wake();
    w.sessions.listening(w.host.database, awake.socket);
    w.until("the guest to be greeted", || w.vm().with(|vm| vm.sessions.contains_key(&1))).await;
    assert!(!connected.is_finished(), "whose life it is is not known yet");
    gate.notify_one();
    let (client, connection) = connected.await.unwrap().unwrap();
    tokio::spawn(connection);
    assert_eq!(ask(&client, "hello").await, "hello");
}

#[tokio::test]
async fn after_a_cold_start_held_sessions_end_with_57p01() {
    let w = World::new().await;
    let (client, silent) = (w.connect().await, w.connect().await);
    w.suspend().await;
    held(&w, 2).await;
    w.vm().kill();
    assert_eq!(code(&try_ask(&client, "get").await.unwrap_err()), "57P01");
    // The other learns of it when the first has woken the database.
    w.until("both to be gone", || w.sessions.metrics().sessions.get() == 0).await;
    assert!(silent.is_closed());
    assert_eq!(w.sessions.metrics().lost.get(), 2);
    // And a new one gets in.
    assert_eq!(ask(&w.connect().await, "hello").await, "hello");
    assert_eq!(w.sessions.quiesce(w.host.database).unwrap().len(), 1);
}

#[tokio::test]
async fn sessions_that_the_vmm_does_not_know_or_counts_otherwise_end_with_57p01() {
    for status in [1, 2, 3, 99] {
        let w = World::new().await;
        let client = w.connect().await;
        w.suspend().await;
        w.vm().with(|vm| vm.force_status = Some(status));
        assert_eq!(code(&try_ask(&client, "get").await.unwrap_err()), "57P01", "status {status}");
    }
}

#[tokio::test]
async fn a_crash_under_an_open_session_ends_it_with_57p01() {
    let w = World::new().await;
    let mut raw = raw_session(&w).await;
    w.vm().kill();
    assert_eq!(raw.refused().await.0, "57P01");
    w.until("the session to be gone", || w.sessions.metrics().sessions.get() == 0).await;
    assert_eq!(w.sessions.active(w.host.database), Default::default());
}

#[tokio::test]
async fn held_clients_hear_what_the_guest_says_unasked_after_another_woke_it() {
    let w = World::new().await;
    let mut listener = raw_session(&w).await;
    let speaker = w.connect().await;
    w.suspend().await;
    held(&w, 2).await;
    let notification = message(b'A', b"\0\0\0\x07news\0told\0");
    w.vm().tell(1, notification);
    assert_eq!(ask(&speaker, "hello").await, "hello");
    let (kind, body) = listener.receive().await.unwrap();
    assert_eq!((kind, &body[4..]), (b'A', &b"news\0told\0"[..]));
    // It did not ask for anything, so the next suspend finds it idle and its counts right.
    w.suspend().await;
    assert_eq!(w.wakes(), 3);
}

#[tokio::test]
async fn the_client_that_woke_it_is_served_before_the_silent_ones() {
    let w = World::new().await;
    let mut clients = vec![];
    for _ in 0..20 {
        clients.push(w.connect().await);
    }
    let speaker = w.connect().await;
    w.suspend().await;
    held(&w, 21).await;
    let gate = Arc::new(Notify::new());
    *w.host.wake_gate.lock().unwrap() = Some(gate.clone());
    w.vm().with(|vm| vm.hellos.clear());
    let asked = tokio::spawn(async move { ask(&speaker, "first").await });
    w.until("it to ask for a wake", || w.sessions.active(w.host.database).starting == 1).await;
    // The host tells of the wake before it answers those who asked for it.
    let awake = w.vm().wake();
    w.sessions.awake(w.host.database, &awake, &[]);
    tokio::time::sleep(Duration::from_millis(20)).await;
    gate.notify_waiters();
    assert_eq!(asked.await.unwrap(), "first");
    w.until("all to be bound", || w.sessions.metrics().bound.get() == 21).await;
    assert_eq!(w.vm().with(|vm| vm.hellos[0][8]), 21, "the speaker's session came first");
    w.suspend().await;
}

#[tokio::test]
async fn held_clients_are_bound_when_the_host_woke_the_database_by_itself() {
    let w = World::new().await;
    let mut listener = raw_session(&w).await;
    w.suspend().await;
    held(&w, 1).await;
    w.vm().tell(1, message(b'A', b"\0\0\0\x07news\0told\0"));
    let awake = w.vm().wake();
    w.sessions.awake(w.host.database, &awake, &[]);
    assert_eq!(listener.receive().await.unwrap().0, b'A');
    assert_eq!(w.wakes(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_sleep_wakes_nobody_and_is_buried_at_the_next_wake() {
    let w = World::new().await;
    let (stays, leaves, drops) = (w.connect().await, w.connect().await, raw_session(&w).await);
    w.suspend().await;
    held(&w, 3).await;
    drop(leaves); // with a Terminate
    drop(drops); // without a word
    held(&w, 1).await;
    assert_eq!(w.wakes(), 3, "a goodbye wakes nobody");
    assert_eq!(w.sessions.active(w.host.database).clients, 1);
    assert_eq!(w.vm().with(|vm| vm.sessions.len()), 3, "the guest does not know yet");
    assert_eq!(ask(&stays, "hello").await, "hello");
    w.vm().until(|vm| (vm.sessions.len() == 1).then_some(())).await;
    w.suspend().await;
    assert_eq!(ask(&stays, "hello").await, "hello");
}

#[tokio::test]
async fn the_last_client_s_session_is_buried_when_a_new_client_comes() {
    let w = World::new().await;
    let leaves = w.connect().await;
    w.suspend().await;
    drop(leaves);
    w.until("it to be gone", || w.sessions.metrics().sessions.get() == 0).await;
    let _new = w.connect().await;
    assert_eq!(w.vm().with(|vm| vm.sessions.keys().copied().collect::<Vec<_>>().len()), 1);
    w.suspend().await;
}

#[tokio::test]
async fn the_dead_are_told_of_in_a_suspend_that_comes_before_their_burial() {
    let w = World::new().await;
    let leaves = w.connect().await;
    w.suspend().await;
    drop(leaves);
    w.until("it to be gone", || w.sessions.metrics().sessions.get() == 0).await;
    // The host wakes it for a reason of its own and puts it to sleep again.
    w.vm().wake();
    w.suspend().await;
}

#[tokio::test]
async fn a_client_that_leaves_during_a_suspend_does_not_disturb_it() {
    let w = World::new().await;
    let leaves = w.connect().await;
    let counts = w.quiesce().await;
    drop(leaves);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(w.host.spoke.load(std::sync::atomic::Ordering::SeqCst), 0);
    w.vm().suspend(&counts).unwrap();
    w.sessions.suspended(w.host.database);
    w.until("it to be gone", || w.sessions.metrics().sessions.get() == 0).await;
    let _new = w.connect().await;
    assert_eq!(w.vm().with(|vm| vm.sessions.len()), 1);
}

#[tokio::test]
async fn sessions_from_before_a_restart_of_the_server_are_closed() {
    let w = World::new().await;
    let lost = w.connect().await;
    let counts = w.quiesce().await;
    w.vm().suspend(&counts).unwrap();
    // Another pooler, over the same guest, as after a restart.
    let w2 = World::new().await;
    let awake = w.vm().wake();
    w2.sessions.awake(w.host.database, &awake, &counts);
    w.vm().until(|vm| vm.sessions.is_empty().then_some(())).await;
    w2.until("the burial to end", || w2.sessions.active(w.host.database).starting == 0).await;
    assert_eq!(w2.sessions.quiesce(w.host.database), Ok(vec![]));
    drop(lost);
}

#[tokio::test]
async fn a_deleted_database_ends_its_sessions_awake_and_held() {
    let w = World::new().await;
    let mut awake = raw_session(&w).await;
    w.sessions.end(w.host.database, "57P01", "the database was deleted");
    assert_eq!(awake.refused().await, ("57P01".into(), "the database was deleted".into()));
    let mut asleep = raw_session(&w).await;
    w.suspend().await;
    w.sessions.end(w.host.database, "57P01", "the database was deleted");
    assert_eq!(asleep.refused().await.0, "57P01");
    assert_eq!(w.sessions.active(w.host.database), Default::default());
}

#[tokio::test]
async fn a_wake_that_fails_says_so_with_a_fitting_sqlstate() {
    for (error, sqlstate) in [
        (WakeError::Unavailable("no memory left on this server".into()), "57P03"),
        (WakeError::TooMany("too many databases are awake".into()), "53300"),
        (WakeError::Deleting, "57P01"),
    ] {
        let w = World::new().await;
        let client = w.connect().await;
        w.suspend().await;
        *w.host.wake_error.lock().unwrap() = Some(error.clone());
        assert_eq!(code(&try_ask(&client, "get").await.unwrap_err()), sqlstate);
        assert_eq!(code(&w.try_connect().await.err().unwrap()), sqlstate);
        // What is left of the session in the guest is closed once it can be woken.
        *w.host.wake_error.lock().unwrap() = None;
        if error != WakeError::Deleting {
            let _new = w.connect().await;
            assert_eq!(w.vm().with(|vm| vm.sessions.len()), 1);
        }
    }
}

#[tokio::test]
async fn a_wake_that_takes_too_long_is_given_up() {
    let w = World::with(|s| s.wake_timeout_ms = 100).await;
    let client = w.connect().await;
    w.suspend().await;
    *w.host.wake_gate.lock().unwrap() = Some(Arc::new(Notify::new()));
    assert_eq!(code(&try_ask(&client, "get").await.unwrap_err()), "57P03");
    assert_eq!(code(&w.try_connect().await.err().unwrap()), "57P03");
    assert_eq!(w.sessions.active(w.host.database), Default::default());
}

#[tokio::test]
async fn a_vmm_that_is_gone_when_it_is_called_is_woken_once_more() {
    let w = World::new().await;
    let client = w.connect().await;
    w.suspend().await;
    // Told of an awake VMM that is not there.
    let stale = dormouse_pooler::Awake { socket: w.dir.path().join("nobody.sock"), epoch: "epoch-0".into() };
    w.sessions.awake(w.host.database, &stale, &[]);
    assert_eq!(ask(&client, "found").await, "found");
    assert_eq!(w.wakes(), 2);
    assert_eq!(w.sessions.metrics().lost.get(), 0);
}

#[tokio::test]
async fn new_clients_wait_for_a_wake_in_a_bounded_queue() {
    let w = World::with(|s| s.max_waiting = 3).await;
    let gate = Arc::new(Notify::new());
    *w.host.wake_gate.lock().unwrap() = Some(gate.clone());
    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(w.config().connect_owned())).collect();
    w.until("all to wait", || w.wakes() == 3).await;
    assert_eq!(w.sessions.active(w.host.database).starting, 3);
    assert_eq!(w.sessions.quiesce(w.host.database), Err(Busy::Starting));
    assert_eq!(code(&w.try_connect().await.err().unwrap()), "53300");
    *w.host.wake_gate.lock().unwrap() = None;
    gate.notify_waiters();
    for connecting in waiting {
        assert!(connecting.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_client_that_gives_up_waiting_leaves_the_queue() {
    let w = World::new().await;
    *w.host.wake_gate.lock().unwrap() = Some(Arc::new(Notify::new()));
    let connecting = tokio::spawn(w.config().connect_owned());
    w.host.wake_seen.notified().await;
    connecting.abort();
    w.until("it to leave", || w.sessions.active(w.host.database) == Default::default()).await;
    w.until("its connection to be closed", || w.sessions.metrics().clients.get() == 0).await;
}

#[tokio::test]
async fn drain_lets_a_statement_finish_and_sends_the_idle_away() {
    let w = World::new().await;
    let mut idle = raw_session(&w).await;
    let busy = Arc::new(w.connect().await);
    let running = tokio::spawn({
        let busy = busy.clone();
        async move { try_ask(&busy, "wait").await }
    });
    w.vm().until(|vm| vm.sessions.values().any(|s| s.queries == ["wait"]).then_some(())).await;
    let token = busy.cancel_token();
    let sessions = w.sessions.clone();
    let draining = tokio::spawn(async move { sessions.drain(Duration::from_secs(30)).await });
    assert_eq!(idle.refused().await.0, "57P01");
    w.vm().until(|vm| (vm.sessions.len() == 1).then_some(())).await;
    assert!(!draining.is_finished());
    // The listener is closed: the statement ends by other means.
    assert!(token.cancel_query(tokio_postgres::NoTls).await.is_err());
    w.vm().with(|vm| assert_eq!(vm.sessions.len(), 1));
    w.sessions.end(w.host.database, "57P01", "enough");
    assert_eq!(code(&running.await.unwrap().unwrap_err()), "57P01");
    draining.await.unwrap();
}

#[tokio::test]
async fn drain_loses_patience() {
    let w = World::new().await;
    let mut held_one = raw_session(&w).await;
    w.suspend().await;
    held(&w, 1).await;
    w.sessions.drain(Duration::from_millis(10)).await;
    assert_eq!(held_one.refused().await.0, "57P01");
    assert!(tokio::net::TcpStream::connect(w.address).await.is_err());

    let w = World::new().await;
    let mut busy = raw_session(&w).await;
    busy.send(&query("wait")).await;
    w.vm().until(|vm| (vm.sessions[&1].queries == ["wait"]).then_some(())).await;
    w.sessions.drain(Duration::from_millis(10)).await;
    assert_eq!(busy.refused().await.0, "57P01");
}

#[tokio::test]
async fn a_held_client_that_speaks_into_another_suspend_waits_for_its_end() {
    let w = World::new().await;
    let client = Arc::new(w.connect().await);
    ask(&client, "set kept").await;
    w.suspend().await;
    held(&w, 1).await;
    // The host has woken it for a reason of its own, and puts it to sleep again.
    w.vm().wake();
    let counts = w.quiesce().await;
    let asked = tokio::spawn({
        let client = client.clone();
        async move { ask(&client, "get").await }
    });
    w.host.wake_seen.notified().await;
    w.until("it to bind", || w.sessions.active(w.host.database).starting == 1).await;
    w.vm().suspend(&counts).unwrap();
    w.sessions.suspended(w.host.database);
    assert_eq!(asked.await.unwrap(), "kept");
    assert_eq!(w.sessions.metrics().lost.get(), 0);
}

#[tokio::test]
async fn a_suspend_nobody_agreed_to_ends_the_sessions() {
    let w = World::new().await;
    let mut raw = raw_session(&w).await;
    w.sessions.suspended(w.host.database);
    assert_eq!(raw.refused().await.0, "57P01");
}

#[tokio::test]
async fn counts_are_those_of_the_bytes() {
    let w = World::new().await;
    let client = w.connect().await;
    ask(&client, "fill 100000").await;
    ask(&client, "short").await;
    let counts = w.quiesce().await;
    let (sent, received) = w.vm().with(|vm| (vm.sessions[&1].received, vm.sessions[&1].sent));
    assert_eq!(counts, [SessionCounts { session: 1, sent, received }]);
    assert!(received > 100_000);
    w.sessions.release(w.host.database);
    // What the guest says into a suspend is not read before its end, so that the counts stay true.
    let counts = w.quiesce().await;
    let unasked = message(b'A', b"\0\0\0\x07news\0told\0");
    w.vm().tell(1, unasked.clone());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(w.vm().suspend(&counts).unwrap_err().contains("bytes_in_flight"));
    w.sessions.release(w.host.database);
    let whole = received + unasked.len() as u64;
    w.until("it to be forwarded", || match w.sessions.quiesce(w.host.database) {
        Ok(counts) => {
            w.sessions.release(w.host.database);
            counts[0].received == whole
        }
        Err(_) => false,
    })
    .await;
    w.suspend().await;
}

#[tokio::test]
async fn many_sessions_over_many_sleeps_with_queries_in_the_way() {
    let w = Arc::new(World::new().await);
    let clients: Vec<_> = futures_of(10, || w.connect()).await;
    let mut asking = vec![];
    for (n, client) in clients.into_iter().enumerate() {
        asking.push(tokio::spawn(async move {
            ask(&client, &format!("set {n}")).await;
            for round in 0..60u64 {
                assert_eq!(ask(&client, "get").await, n.to_string());
                tokio::time::sleep(Duration::from_millis((n as u64 * 7 + round * 3) % 11)).await;
            }
        }));
    }
    let mut slept = 0;
    while asking.iter().any(|a| !a.is_finished()) {
        if let Ok(counts) = w.sessions.quiesce(w.host.database) {
            // Sometimes the VMM says no, as it does when bytes are still in its own hands.
            if slept % 3 != 2 && w.vm().suspend(&counts).is_ok() {
                w.sessions.suspended(w.host.database);
            } else {
                w.sessions.release(w.host.database);
            }
            slept += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for a in asking {
        a.await.unwrap();
    }
    assert!(slept > 20, "slept only {slept} times");
    assert!(w.sessions.metrics().bound.get() > 20);
    assert_eq!(w.sessions.metrics().lost.get(), 0);
}

async fn futures_of<T, F: Future<Output = T>>(n: usize, mut make: impl FnMut() -> F) -> Vec<T> {
    let mut all = vec![];
    for _ in 0..n {
        all.push(make().await);
    }
    all
}

trait ConnectOwned {
    fn connect_owned(self) -> impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static;
}

impl ConnectOwned for tokio_postgres::Config {
    async fn connect_owned(self) -> Result<(), tokio_postgres::Error> {
        self.connect(tokio_postgres::NoTls).await.map(|_| ())
    }
}
