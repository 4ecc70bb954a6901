//! An awake session: bytes both ways, cancel requests, ends.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::guest::message;
use support::raw::{Raw, query};
use support::{PASSWORD, World, ask, code, try_ask};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_postgres::NoTls;

async fn raw_session(w: &World, minor: u16) -> (Raw, Vec<u8>) {
    let mut raw = Raw::connect(w.address).await;
    let user = w.user();
    let messages = raw.log_in(minor, &[("user", &user)], PASSWORD).await;
    assert_eq!(messages.last().unwrap().0, b'Z');
    let key = messages.iter().find(|m| m.0 == b'K').unwrap().1.clone();
    (raw, key)
}

fn cancel_request(key: &[u8]) -> Vec<u8> {
    let mut packet = (8 + key.len() as u32).to_be_bytes().to_vec();
    packet.extend_from_slice(&80877102u32.to_be_bytes());
    packet.extend_from_slice(key);
    packet
}

#[tokio::test]
async fn bytes_that_are_not_utf_8_go_through_as_they_are() {
    let w = World::new().await;
    let (mut raw, _) = raw_session(&w, 0).await;
    raw.send(&message(b'Q', b"\xff\xfe\xc3\x28\0")).await;
    assert_eq!(raw.receive().await.unwrap().0, b'T');
    assert!(raw.receive().await.unwrap().1.ends_with(b"\xff\xfe\xc3\x28"));
}

#[tokio::test]
async fn large_answers_and_many_queries_at_once() {
    let w = World::new().await;
    let client = Arc::new(w.connect().await);
    assert_eq!(ask(&client, "fill 5000000").await.len(), 5_000_000);
    let all: Vec<_> = (0..200)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { ask(&client, &format!("fill {}", n * 100)).await.len() })
        })
        .collect();
    for (n, one) in all.into_iter().enumerate() {
        assert_eq!(one.await.unwrap(), n * 100);
    }
    w.suspend().await;
}

#[tokio::test]
async fn both_ways_at_once_do_not_block_each_other() {
    let w = World::new().await;
    let (mut raw, _) = raw_session(&w, 0).await;
    // 200 queries are written, 40 MB of answers, before anything is read.
    let queries = query("fill 200000").repeat(200);
    raw.send(&queries).await;
    let mut ready = 0;
    while ready < 200 {
        ready += usize::from(raw.receive().await.unwrap().0 == b'Z');
    }
    w.suspend().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_keeps_the_database_awake_and_little_memory() {
    let w = World::new().await;
    let (mut raw, _) = raw_session(&w, 0).await;
    raw.send(&query("fill 50000000")).await;
    w.until("the way to be full", || w.sessions.active(w.host.database).waiting == 1).await;
    let mut before = 0;
    w.until("bytes to stop", || {
        let now = w.sessions.metrics().bytes_to_client.get();
        std::mem::replace(&mut before, now) == now && now > 0
    })
    .await;
    assert!(before < 49_000_000, "{before}");
    assert!(w.sessions.quiesce(w.host.database).is_err());
    while raw.receive().await.unwrap().0 != b'Z' {}
    w.suspend().await;
}

#[tokio::test]
async fn a_client_s_hostile_length_ends_its_session_with_an_error() {
    let w = World::new().await;
    for bytes in [&b"Q\0\0\0\x03"[..], b"Q\xff\xff\xff\xff", b"d\x40\0\0\0", b"S\0\0\0\0"] {
        let (mut raw, _) = raw_session(&w, 0).await;
        raw.send(bytes).await;
        assert_eq!(raw.refused().await.0, "08P01");
    }
    w.until("all to be gone", || w.sessions.active(w.host.database) == Default::default()).await;
    assert_eq!(ask(&w.connect().await, "fine").await, "fine");
}

#[tokio::test]
async fn a_client_s_hostile_length_wakes_nobody_and_its_session_is_closed_at_the_next_wake() {
    let w = World::new().await;
    let (mut raw, _) = raw_session(&w, 0).await;
    w.suspend().await;
    w.until("it to be held", || w.sessions.metrics().held.get() == 1).await;
    let wakes = w.wakes();
    raw.send(b"Q\0\0\0\x03").await;
    assert_eq!(raw.refused().await.0, "08P01");
    w.until("it to be gone", || w.sessions.active(w.host.database) == Default::default()).await;
    assert_eq!(w.wakes(), wakes);
    let client = w.connect().await;
    w.until("the guest's end to be closed", || w.vm().with(|vm| !vm.sessions.contains_key(&1))).await;
    assert_eq!(ask(&client, "fine").await, "fine");
}

#[tokio::test]
async fn a_hostile_guest_s_length_ends_the_session() {
    let w = World::new().await;
    let (mut raw, _) = raw_session(&w, 0).await;
    w.vm().tell(1, b"D\xff\xff\xff\xff".to_vec());
    assert_eq!(raw.receive().await, None);
}

#[tokio::test]
async fn a_guest_that_says_why_it_ends_has_the_last_word() {
    let w = World::new().await;
    let client = w.connect().await;
    let error = try_ask(&client, "fatal").await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().message(), "terminated by the guest");
    let client = w.connect().await;
    assert_eq!(code(&try_ask(&client, "die").await.unwrap_err()), "57P01");
}

#[tokio::test]
async fn terminate_and_a_closed_connection_end_the_guest_s_session() {
    let w = World::new().await;
    let (mut polite, _) = raw_session(&w, 0).await;
    polite.send(&message(b'X', b"")).await;
    assert_eq!(polite.receive().await, None);
    w.vm().until(|vm| vm.sessions.is_empty().then_some(())).await;
    let (rude, _) = raw_session(&w, 0).await;
    drop(rude);
    w.vm().until(|vm| vm.sessions.is_empty().then_some(())).await;
    // While a statement runs, too.
    let (mut busy, _) = raw_session(&w, 0).await;
    busy.send(&query("fill 30000000")).await;
    drop(busy);
    w.vm().until(|vm| vm.sessions.is_empty().then_some(())).await;
    w.until("all to be gone", || w.sessions.metrics().clients.get() == 0).await;
}

#[tokio::test]
async fn an_answer_is_delivered_to_a_client_that_has_shut_its_side() {
    let w = World::new().await;
    let mut raw = {
        let tcp = TcpStream::connect(w.address).await.unwrap();
        Raw::over(tcp)
    };
    let user = w.user();
    raw.log_in(0, &[("user", &user)], PASSWORD).await;
    raw.send(&query("last words")).await;
    raw.stream.shutdown().await.unwrap();
    let mut kinds = vec![];
    while let Some((kind, _)) = raw.receive().await {
        kinds.push(kind);
    }
    assert_eq!(kinds, b"TDCZ");
}

#[tokio::test]
async fn cancel_by_the_pooler_s_key_reaches_the_guest_with_its_own() {
    for (minor, tls) in [(0, false), (2, false), (0, true), (2, true)] {
        let w = World::new().await;
        let (mut raw, key) = raw_session(&w, minor).await;
        raw.send(&query("wait")).await;
        w.vm().until(|vm| (vm.sessions[&1].queries == ["wait"]).then_some(())).await;
        let mut other = match tls {
            true => Raw::tls(w.address, false, None).await.unwrap(),
            false => Raw::connect(w.address).await,
        };
        other.send(&cancel_request(&key)).await;
        assert_eq!(other.receive().await, None);
        let (kind, body) = raw.receive().await.unwrap();
        assert_eq!((kind, support::fields(&body)[&'C'].as_str()), (b'E', "57014"));
        w.vm().with(|vm| assert_eq!(vm.cancels, [(1, vec![1, 2, 3, 4])]));
        assert_eq!(w.sessions.metrics().cancels.get(), 1);
    }
}

#[tokio::test]
async fn wrong_cancel_keys_reach_nobody() {
    let w = World::new().await;
    let (_raw, key) = raw_session(&w, 2).await;
    let (_other, short) = raw_session(&w, 0).await;
    let mut wrong = key.clone();
    *wrong.last_mut().unwrap() ^= 1;
    // The guest's own key, another's secret, part of a secret.
    let guests = [0, 0, 0, 1, 1, 2, 3, 4].to_vec();
    let mixed = [&key[..4], &short[4..]].concat();
    for bad in [wrong, guests, mixed, key[..8].to_vec()] {
        let mut raw = Raw::connect(w.address).await;
        raw.send(&cancel_request(&bad)).await;
        assert_eq!(raw.receive().await, None);
    }
    assert_eq!(w.sessions.metrics().stray_cancels.get(), 4);
    w.vm().with(|vm| assert!(vm.cancels.is_empty()));
}

#[tokio::test]
async fn cancel_wakes_nobody() {
    let w = World::new().await;
    let (_raw, key) = raw_session(&w, 0).await;
    w.suspend().await;
    let mut other = Raw::connect(w.address).await;
    other.send(&cancel_request(&key)).await;
    assert_eq!(other.receive().await, None);
    assert_eq!(w.wakes(), 1);
    w.vm().with(|vm| assert!(vm.cancels.is_empty()));
}

#[tokio::test]
async fn a_key_ends_with_its_session() {
    let w = World::new().await;
    let (mut raw, key) = raw_session(&w, 0).await;
    let _another = w.connect().await;
    raw.send(&message(b'X', b"")).await;
    assert_eq!(raw.receive().await, None);
    let mut other = Raw::connect(w.address).await;
    other.send(&cancel_request(&key)).await;
    assert_eq!(other.receive().await, None);
    assert_eq!(w.sessions.metrics().stray_cancels.get(), 1);
}

#[tokio::test]
async fn a_cancel_under_way_holds_off_a_suspend_and_is_bounded() {
    let w = World::with(|s| s.cancel_timeout_ms = 300).await;
    let (_raw, key) = raw_session(&w, 0).await;
    w.quiesce().await;
    w.sessions.release(w.host.database);
    w.vm().with(|vm| vm.hold_cancel = Some(Arc::new(Notify::new())));
    let mut other = Raw::connect(w.address).await;
    other.send(&cancel_request(&key)).await;
    w.vm().until(|vm| (vm.cancels.len() == 1).then_some(())).await;
    assert!(w.sessions.quiesce(w.host.database).is_err(), "it could hit the wrong statement after a wake");
    assert!(
        tokio::time::timeout(Duration::from_millis(50), other.stream.read_u8()).await.is_err(),
        "the client waits until it is through"
    );
    assert_eq!(other.receive().await, None);
    w.quiesce().await;
}

#[tokio::test]
async fn a_driver_s_own_cancel_works() {
    let w = World::new().await;
    let client = w.connect().await;
    let token = client.cancel_token();
    let waiting = tokio::spawn(async move { try_ask(&client, "wait").await });
    w.vm().until(|vm| (vm.sessions[&1].queries == ["wait"]).then_some(())).await;
    token.cancel_query(NoTls).await.unwrap();
    assert_eq!(code(&waiting.await.unwrap().unwrap_err()), "57014");
}

#[test]
fn several_runtimes_can_serve_one_listener() {
    let current = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let main = current();
    let mut w = main.block_on(World::with_spare(|_| {}));
    // World serves in its own runtime, which from here on runs only while it is waited on.
    let other = w.spare.take().unwrap();
    let serving = std::thread::spawn(move || current().block_on(other.serve()));
    let (address, user) = (w.address, w.user());
    let client = std::thread::spawn(move || {
        current().block_on(async {
            let mut sessions = vec![];
            for _ in 0..20 {
                let mut raw = Raw::connect(address).await;
                assert_eq!(raw.log_in(0, &[("user", &user)], PASSWORD).await.last().unwrap().0, b'Z');
                sessions.push(raw);
            }
            for raw in &mut sessions {
                raw.send(&query("hello")).await;
                while raw.receive().await.unwrap().0 != b'Z' {}
            }
            sessions
        })
    });
    main.block_on(async {
        w.until("all to be connected", || client.is_finished()).await;
        w.suspend().await;
        w.sessions.drain(Duration::ZERO).await;
    });
    serving.join().unwrap();
    assert_eq!(client.join().unwrap().len(), 20);
}

#[tokio::test]
async fn a_port_in_use_is_said_with_the_setting_s_name() {
    let w = World::new().await;
    let settings = dormouse_pooler::Settings { listen: w.address, ..w.settings.clone() };
    let again = dormouse_pooler::Pooler::bind(settings, w.host.clone(), &w.sessions).await;
    let text = again.err().unwrap().to_string();
    assert!(text.contains("listen") && text.contains(&w.address.to_string()), "{text}");
}

#[tokio::test]
async fn a_password_set_in_sql_is_noted_before_the_client_hears_of_it() {
    use dormouse_pooler::PasswordsSet;
    let w = World::new().await;
    let (mut raw, _) = raw_session(&w, 0).await;
    let gate = Arc::new(Notify::new());
    *w.host.note_gate.lock().unwrap() = Some(gate.clone());
    raw.send(&query("announce app")).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), raw.receive()).await.is_err());
    assert!(w.sessions.quiesce(w.host.database).is_err());
    gate.notify_one();
    let mut kinds = vec![];
    while kinds.last() != Some(&b'Z') {
        kinds.push(raw.receive().await.unwrap().0);
    }
    assert_eq!(kinds, b"SCZ");
    *w.host.note_gate.lock().unwrap() = None;
    raw.send(&query("announce any")).await;
    while raw.receive().await.unwrap().0 != b'Z' {}
    let noted = w.host.noted.lock().unwrap().clone();
    assert_eq!(noted, [PasswordsSet { owner: true, other: false }, PasswordsSet { owner: false, other: true }]);
    w.suspend().await;
    raw.send(&query("hello")).await;
    while raw.receive().await.unwrap().0 != b'Z' {}

    // What cannot be noted is not acknowledged.
    w.host.notes_fail.store(true, std::sync::atomic::Ordering::SeqCst);
    raw.send(&query("announce any")).await;
    assert_eq!(raw.receive().await, None);
}

#[tokio::test]
async fn wrong_cancel_keys_are_limited() {
    let w = World::with(|s| s.cancel_guesses = 3).await;
    let (_raw, key) = raw_session(&w, 0).await;
    let send = async |key: &[u8]| {
        let mut other = Raw::connect(w.address).await;
        other.send(&cancel_request(key)).await;
        assert_eq!(other.receive().await, None);
    };
    send(&key).await;
    for n in 0..3 {
        send(&[&key[..4], &[n; 4]].concat()).await;
    }
    send(&key).await;
    assert_eq!(w.sessions.metrics().stray_cancels.get(), 3);
    w.vm().with(|vm| assert_eq!(vm.cancels.len(), 1));
}
