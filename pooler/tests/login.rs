//! What happens before a session: TLS, startup packets good and hostile, passwords, limits. Nothing of it wakes anybody.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use dormouse_pooler::{Availability, Plain, Settings};
use support::guest::message;
use support::raw::{GSS_REQUEST, Raw, SSL_REQUEST, query, startup};
use support::{PASSWORD, World, ask, code, id};
use tokio::io::AsyncReadExt;

async fn say(w: &World, bytes: &[u8]) -> Raw {
    let mut raw = Raw::connect(w.address).await;
    raw.send(bytes).await;
    raw
}

#[tokio::test]
async fn the_guest_sees_the_role_and_the_client_its_own_key() {
    let w = World::new().await;
    let user = w.user();
    let mut raw = Raw::connect(w.address).await;
    let messages = raw
        .log_in(0, &[("user", &user), ("database", "shop"), ("application_name", "test"), ("options", "-c a=b")], PASSWORD)
        .await;
    let kinds: Vec<u8> = messages.iter().map(|m| m.0).collect();
    assert_eq!(kinds, b"RRRRSSKZ");
    let key = &messages[6].1;
    assert_eq!(key.len(), 8);
    assert_ne!(key[..], [0, 0, 0, 1, 1, 2, 3, 4], "not the guest's");
    w.vm().with(|vm| {
        let startup = &vm.sessions[&1].startup;
        assert_eq!(startup["user"], "app");
        assert_eq!(startup["database"], "shop");
        assert_eq!(startup["application_name"], "test");
        assert_eq!(startup["options"], "-c a=b");
        assert_eq!(startup.len(), 4);
    });
    assert_eq!(w.host.lookups.lock().unwrap()[..], [(w.host.database, "app".to_owned())]);
}

#[tokio::test]
async fn several_logins_can_lead_to_one_role() {
    let w = World::new().await;
    w.host.route.lock().unwrap().guest_role = "owner".into();
    let _client = w.connect().await;
    w.vm().with(|vm| assert_eq!(vm.sessions[&1].startup["user"], "owner"));
    assert_eq!(w.host.lookups.lock().unwrap()[0].1, "app");
}

#[tokio::test]
async fn a_client_that_names_no_database_gets_the_default_one() {
    let w = World::new().await;
    let user = w.user();
    // libpq names the user's when there is none: that is not what was meant, either.
    for parameters in [&[("user", &*user)][..], &[("user", &user), ("database", &user)], &[("user", &user), ("database", "")]] {
        let mut raw = Raw::connect(w.address).await;
        assert_eq!(raw.log_in(0, parameters, PASSWORD).await.last().unwrap().0, b'Z');
    }
    w.vm().with(|vm| assert!(vm.sessions.values().all(|s| s.startup["database"] == "app")));
}

#[tokio::test]
async fn wrong_password_unknown_role_and_unknown_database_cannot_be_told_apart() {
    let w = World::new().await;
    let known = w.user();
    let no_role = format!("nobody.{}", w.host.database);
    let no_database = format!("app.{}", id('b'));
    let mut seen = vec![];
    for user in [&known, &no_role, &no_database] {
        let mut shapes = vec![];
        for _ in 0..2 {
            let mut raw = Raw::connect(w.address).await;
            let messages = raw.log_in(0, &[("user", user)], "wrong").await;
            let challenge = String::from_utf8(messages[1].1[4..].to_vec()).unwrap();
            let parts: Vec<&str> = challenge.split(',').collect();
            assert_eq!(raw.receive().await, None);
            let error = support::fields(&messages[2].1);
            let text = error[&'M'].replace(user.as_str(), "USER");
            let salt = parts[1].to_owned();
            shapes.push((
                messages.iter().map(|m| (m.0, m.1.len() + known.len() - if m.0 == b'E' { user.len() } else { known.len() })).collect::<Vec<_>>(),
                parts[2].to_owned(),
                salt.len(),
                text,
                error[&'C'].clone(),
                error.keys().copied().collect::<std::collections::BTreeSet<_>>(),
                salt,
            ));
        }
        assert_eq!(shapes[0].6, shapes[1].6, "the salt of {user} changed");
        let (a, b, c, d, e, f, _) = shapes.swap_remove(0);
        seen.push((a, b, c, d, e, f));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
    assert_eq!(seen[0].3, "password authentication failed for user \"USER\"");
    assert_eq!(seen[0].4, "28P01");
    assert_eq!(w.wakes(), 0);
    assert_eq!(w.sessions.metrics().refused.get(), 6);
}

#[tokio::test]
async fn a_user_without_a_database_is_told_what_is_missing() {
    let w = World::new().await;
    for user in ["app", "app.db_short", "postgres"] {
        let mut raw = say(&w, &startup(0, &[("user", user)])).await;
        let (sqlstate, text) = raw.refused().await;
        assert_eq!(sqlstate, "28000");
        assert!(text.contains(user), "{text}");
    }
    assert!(w.host.lookups.lock().unwrap().is_empty());
}

#[tokio::test]
async fn metadata_that_cannot_be_asked_is_no_password_error() {
    let w = World::new().await;
    let user = format!("broken.{}", w.host.database);
    assert_eq!(say(&w, &startup(0, &[("user", &user)])).await.refused().await.0, "57P03");
}

#[tokio::test]
async fn a_damaged_verifier_lets_nobody_in() {
    let w = World::new().await;
    for damaged in ["", "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA", "md5aaaa"] {
        w.host.route.lock().unwrap().verifier = Some(damaged.into());
        assert_eq!(code(&w.try_connect().await.err().unwrap()), "28P01");
    }
}

#[tokio::test]
async fn the_state_of_a_database_is_told_only_to_who_has_the_password() {
    let w = World::new().await;
    for (availability, sqlstate) in
        [(Availability::Deleting, "57P01"), (Availability::Refused("over its storage limit".into()), "57P03")]
    {
        w.host.route.lock().unwrap().availability = availability;
        assert_eq!(code(&w.try_connect().await.err().unwrap()), sqlstate);
        let wrong = w.config().password("wrong").connect(tokio_postgres::NoTls).await.err().unwrap();
        assert_eq!(code(&wrong), "28P01");
    }
    assert_eq!(w.wakes(), 0);
}

#[tokio::test]
async fn the_client_beyond_the_database_s_limit_is_refused_in_postgres_words() {
    let w = World::new().await;
    w.host.route.lock().unwrap().connection_limit = 2;
    let first = w.connect().await;
    let _second = w.connect().await;
    let error = w.try_connect().await.err().unwrap();
    assert_eq!(code(&error), "53300");
    let text = error.as_db_error().unwrap().message().to_owned();
    assert_eq!(text, "sorry, too many clients already");
    drop(first);
    w.until("a place to be free", || w.sessions.active(w.host.database).clients == 1).await;
    // Held clients keep their place.
    w.suspend().await;
    let _third = w.connect().await;
    assert_eq!(code(&w.try_connect().await.err().unwrap()), "53300");
}

#[tokio::test]
async fn the_client_beyond_the_pooler_s_limit_is_told_so() {
    let w = World::with(|s| s.max_clients = 2).await;
    let (_a, _b) = (w.connect().await, w.connect().await);
    assert_eq!(code(&w.try_connect().await.err().unwrap()), "53300");
    assert_eq!(w.sessions.metrics().over_limit.get(), 1);
    // Far beyond it, connections are cut off at once.
    let mut silent = vec![];
    for _ in 0..70 {
        silent.push(tokio::net::TcpStream::connect(w.address).await.unwrap());
    }
    let mut last = tokio::net::TcpStream::connect(w.address).await.unwrap();
    assert_eq!(last.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn tls_with_and_without_asking_first() {
    let w = World::new().await;
    let user = w.user();
    for (direct, alpn) in [(false, None), (false, Some(&b"postgresql"[..])), (true, Some(&b"postgresql"[..]))] {
        let mut raw = Raw::tls(w.address, direct, alpn).await.unwrap();
        // Its SCRAM names the certificate: -PLUS.
        let messages = raw.log_in(0, &[("user", &user)], PASSWORD).await;
        assert_eq!(messages[0].1[4..], *b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        assert_eq!(messages.last().unwrap().0, b'Z', "direct {direct}");
        raw.send(&query("under TLS")).await;
        assert_eq!(raw.receive().await.unwrap().0, b'T');
        raw.send(&query("fill 300000")).await;
        let mut longest = 0;
        for _ in 0..7 {
            longest = raw.receive().await.unwrap().1.len().max(longest);
        }
        assert!(longest > 300_000);
    }
    assert_eq!(w.sessions.metrics().tls.get(), 3);
}

#[tokio::test]
async fn direct_tls_needs_alpn() {
    let w = World::new().await;
    let mut raw = Raw::tls(w.address, true, None).await.unwrap();
    let (sqlstate, text) = raw.refused().await;
    assert_eq!(sqlstate, "08P01");
    assert!(text.contains("ALPN"), "{text}");
    assert!(Raw::tls(w.address, true, Some(b"http/1.1")).await.is_err());
}

#[tokio::test]
async fn channel_binding_to_another_certificate_is_refused() {
    let w = World::new().await;
    let user = w.user();
    let mut raw = Raw::tls(w.address, false, None).await.unwrap();
    raw.certificate = Some(b"somebody else's".to_vec());
    let messages = raw.log_in(0, &[("user", &user)], PASSWORD).await;
    let error = support::fields(&messages.last().unwrap().1);
    assert_eq!((error[&'C'].as_str(), error[&'M'].as_str()), ("08P01", "SCRAM channel binding check failed"));
    assert_eq!(w.wakes(), 0);
}

#[tokio::test]
async fn a_held_session_under_tls_sleeps_and_wakes() {
    let w = World::new().await;
    let user = w.user();
    let mut raw = Raw::tls(w.address, false, None).await.unwrap();
    raw.log_in(0, &[("user", &user)], PASSWORD).await;
    for _ in 0..3 {
        w.suspend().await;
        raw.send(&query("hello")).await;
        while raw.receive().await.unwrap().0 != b'Z' {}
    }
    assert_eq!(w.wakes(), 4);
}

#[tokio::test]
async fn clear_bytes_behind_an_ssl_request_are_refused() {
    let w = World::new().await;
    for request in [SSL_REQUEST, GSS_REQUEST] {
        for injected in [&b"x"[..], &startup(0, &[("user", &w.user())]), &[startup(0, &[("user", "a")]), query("drop")].concat()] {
            let (sqlstate, text) = say(&w, &[&request[..], injected].concat()).await.refused().await;
            assert_eq!((sqlstate.as_str(), text.as_str()), ("08P01", "received unencrypted data after SSL request"));
        }
    }
    assert!(w.host.lookups.lock().unwrap().is_empty());
}

#[tokio::test]
async fn encryption_requests_are_answered_once_and_in_any_order() {
    let w = World::new().await;
    // GSS is refused, then TLS is taken.
    let mut raw = say(&w, &GSS_REQUEST).await;
    assert_eq!(raw.stream.read_u8().await.unwrap(), b'N');
    raw.send(&SSL_REQUEST).await;
    assert_eq!(raw.stream.read_u8().await.unwrap(), b'S');
    // Twice GSS, or either under TLS, is none of the protocol's business.
    let mut raw = say(&w, &GSS_REQUEST).await;
    assert_eq!(raw.stream.read_u8().await.unwrap(), b'N');
    raw.send(&GSS_REQUEST).await;
    assert_eq!(raw.refused().await.0, "0A000");
    for request in [SSL_REQUEST, GSS_REQUEST] {
        let mut raw = Raw::tls(w.address, false, None).await.unwrap();
        raw.send(&request).await;
        assert_eq!(raw.refused().await.0, "0A000");
    }
    // Without TLS to offer, the client may go on in the clear.
    let w = World::with(|s| s.tls = false).await;
    let mut raw = say(&w, &SSL_REQUEST).await;
    assert_eq!(raw.stream.read_u8().await.unwrap(), b'N');
    let messages = raw.log_in(0, &[("user", &w.user())], PASSWORD).await;
    assert_eq!(messages[0].1[4..], *b"SCRAM-SHA-256\0\0");
    assert_eq!(messages.last().unwrap().0, b'Z');
}

#[tokio::test]
async fn plain_connections_can_be_refused() {
    let w = World::with(|s| s.plain = Plain::Never).await;
    let user = w.user();
    assert_eq!(say(&w, &startup(0, &[("user", &user)])).await.refused().await.0, "28000");
    let mut raw = Raw::tls(w.address, false, None).await.unwrap();
    assert_eq!(raw.log_in(0, &[("user", &user)], PASSWORD).await.last().unwrap().0, b'Z');
    assert_eq!(w.host.lookups.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn protocol_versions_are_negotiated() {
    let w = World::new().await;
    let user = w.user();
    // (asked for, NegotiateProtocolVersion expected, bytes of the cancel key)
    for (minor, negotiated, key) in [(0, None, 4), (1, Some(0), 4), (2, None, 32), (3, Some(2), 32), (9999, Some(2), 32)] {
        let mut raw = Raw::connect(w.address).await;
        let messages = raw.log_in(minor, &[("user", &user)], PASSWORD).await;
        let answer = messages.iter().find(|m| m.0 == b'v').map(|m| m.1.clone());
        assert_eq!(answer, negotiated.map(|n: u8| vec![0, 3, 0, n, 0, 0, 0, 0]), "3.{minor}");
        assert_eq!(messages.iter().find(|m| m.0 == b'K').unwrap().1.len(), 4 + key, "3.{minor}");
    }
    let mut raw = Raw::connect(w.address).await;
    let messages = raw.log_in(0, &[("user", &user), ("_pq_.x", "1"), ("_pq_.y", "2")], PASSWORD).await;
    assert_eq!(messages[0], (b'v', b"\0\x03\0\0\0\0\0\x02_pq_.x\0_pq_.y\0".to_vec()));
    assert_eq!(messages.last().unwrap().0, b'Z');
    let newest = w.vm().with(|vm| vm.sessions.keys().copied().max().unwrap());
    w.vm().with(|vm| assert!(!vm.sessions[&newest].startup.contains_key("_pq_.x")));

    let mut old = startup(0, &[("user", &user)]);
    old[5] = 2;
    let (sqlstate, text) = say(&w, &old).await.refused().await;
    assert_eq!((sqlstate.as_str(), text.as_str()), ("0A000", "unsupported frontend protocol 2.0: server supports 3.0 to 3.2"));
}

#[tokio::test]
async fn hostile_first_packets_get_an_error_response() {
    let w = World::new().await;
    for length in [0u32, 3, 7, 10_001, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0, 3, 0, 0, b'u', b's']);
        assert_eq!(say(&w, &bytes).await.refused().await.0, "08P01", "{length}");
    }
    // Longest that is allowed, and one more.
    let user = w.user();
    let base = startup(0, &[("user", &user), ("application_name", "")]).len();
    for (extra, good) in [(10_000 - base, true), (10_001 - base, false)] {
        let name = "x".repeat(extra);
        let mut raw = say(&w, &startup(0, &[("user", &user), ("application_name", &name)])).await;
        assert_eq!(raw.receive().await.unwrap().0, if good { b'R' } else { b'E' });
    }
    assert_eq!(say(&w, &startup(0, &[])).await.refused().await.0, "28000");
    assert_eq!(say(&w, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.refused().await.0, "08P01");
}

#[tokio::test]
async fn hostile_password_messages_get_an_error_response() {
    let w = World::new().await;
    let user = w.user();
    let first = |data: &[u8]| {
        let mut body = b"SCRAM-SHA-256\0".to_vec();
        body.extend_from_slice(&(data.len() as u32).to_be_bytes());
        body.extend_from_slice(data);
        message(b'p', &body)
    };
    let cases: Vec<Vec<u8>> = vec![
        query("select 1"),
        b"p\0\0\0\0".to_vec(),
        b"p\xff\xff\xff\xff".to_vec(),
        b"p\x7f\xff\xff\xff".to_vec(),
        message(b'p', b""),
        message(b'p', b"SCRAM-SHA-256"),
        message(b'p', b"SCRAM-SHA-256\0\0\0"),
        message(b'p', b"SCRAM-SHA-256\0\x7f\xff\xff\xff"),
        message(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff"),
        message(b'p', b"MD5\0\0\0\0\x01x"),
        message(b'p', b"password\0"),
        first(b""),
        first(b"n,,n=,r=\xff\xfe"),
        first(b"p=tls-server-end-point,,n=,r=abc"),
        [first(b"n,,n=,r=abc"), message(b'p', b"")].concat(),
        [first(b"n,,n=,r=abc"), message(b'p', b"c=biws,r=abc,p=")].concat(),
    ];
    for case in cases {
        let mut raw = say(&w, &startup(0, &[("user", &user)])).await;
        assert_eq!(raw.receive().await.unwrap().0, b'R');
        raw.send(&case).await;
        let mut next = raw.receive().await.unwrap();
        if next.0 == b'R' {
            next = raw.receive().await.unwrap();
        }
        assert_eq!(next.0, b'E', "{case:?}");
        assert_eq!(support::fields(&next.1)[&'C'], "08P01", "{case:?}");
        assert_eq!(raw.receive().await, None);
    }
    assert_eq!(w.wakes(), 0);
    // And the server goes on.
    assert_eq!(ask(&w.connect().await, "fine").await, "fine");
}

#[tokio::test]
async fn bytes_at_random_never_hang_or_hurt() {
    let w = World::with(|s| {
        s.startup_timeout_ms = 300;
        s.farewell_timeout_ms = 50;
    })
    .await;
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut waiting = vec![];
    for n in 0..200 {
        let mut bytes: Vec<u8> = (0..random() % 64).map(|_| random() as u8).collect();
        if n % 2 == 0 {
            // A believable length and version, so that it gets further.
            bytes.splice(..0, [0, 0, 0, 8 + bytes.len() as u8, 0, 3, 0, 0]);
        }
        let mut raw = say(&w, &bytes).await;
        waiting.push(tokio::spawn(async move {
            let mut all = vec![];
            tokio::time::timeout(Duration::from_secs(20), raw.stream.read_to_end(&mut all)).await.expect("left hanging").ok();
        }));
    }
    for one in waiting {
        one.await.unwrap();
    }
    assert_eq!(ask(&w.connect().await, "fine").await, "fine");
}

#[tokio::test]
async fn silence_is_not_waited_out_for_ever() {
    let w = World::with(|s| s.startup_timeout_ms = 100).await;
    // Before a startup packet without a word, as Postgres; after it with one.
    assert_eq!(say(&w, &[0, 0]).await.receive().await, None);
    let mut raw = say(&w, &startup(0, &[("user", &w.user())])).await;
    assert_eq!(raw.receive().await.unwrap().0, b'R');
    assert_eq!(raw.refused().await.0, "57014");
    // TLS asked for and not begun.
    let mut raw = say(&w, &SSL_REQUEST).await;
    assert_eq!(raw.stream.read_u8().await.unwrap(), b'S');
    assert_eq!(raw.receive().await, None);
    w.until("all to be gone", || w.sessions.metrics().clients.get() == 0).await;
}

#[tokio::test]
async fn a_query_sent_before_the_server_is_ready_is_not_lost() {
    let w = World::new().await;
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    *w.host.wake_gate.lock().unwrap() = Some(gate.clone());
    let mut raw = Raw::connect(w.address).await;
    let user = w.user();
    raw.send(&startup(0, &[("user", &user)])).await;
    let login = tokio::spawn(async move {
        let messages = raw.authenticate(PASSWORD).await;
        (raw, messages)
    });
    w.host.wake_seen.notified().await;
    gate.notify_one();
    let (mut raw, messages) = login.await.unwrap();
    assert_eq!(messages.last().unwrap().0, b'Z');
    raw.send(&query("x")).await;
    assert_eq!(raw.receive().await.unwrap().0, b'T');
}

#[tokio::test]
async fn hostile_guests_are_cut_off_with_an_error() {
    let ok = message(b'R', &[0; 4]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (message(b'R', &[0, 0, 0, 3]), "58000"),
        (message(b'R', &[0, 0, 0, 10, b'x', 0, 0]), "58000"),
        (message(b'R', &[]), "58000"),
        (b"R\xff\xff\xff\xff".to_vec(), "58000"),
        (b"N\x7f\xff\xff\xff".to_vec(), "58000"),
        ([ok.clone(), message(b'K', &[1])].concat(), "58000"),
        ([ok.clone(), message(b'Z', b"I")].concat(), "58000"),
        (message(b'N', &vec![b'x'; 60_000]).repeat(5), "58000"),
        (message(b'E', b"SFATAL\0VFATAL\0C3D000\0Mdatabase \"x\" does not exist\0\0"), "3D000"),
    ];
    for (greeting, sqlstate) in cases {
        let w = World::new().await;
        w.vm().with(|vm| vm.greeting = Some(greeting.clone()));
        assert_eq!(code(&w.try_connect().await.err().unwrap()), sqlstate, "{:?}", &greeting[..greeting.len().min(40)]);
        assert_eq!(w.sessions.active(w.host.database), Default::default());
    }
}

#[tokio::test]
async fn a_vmm_that_refuses_is_reported() {
    for (status, sqlstate) in [(3, "53300"), (1, "57P03"), (42, "57P03")] {
        let w = World::new().await;
        w.vm().with(|vm| vm.force_status = Some(status));
        assert_eq!(code(&w.try_connect().await.err().unwrap()), sqlstate);
    }
}

/// A world whose role is asked of the guest.
async fn world_with_role(role: Option<(Option<String>, bool)>) -> World {
    let w = World::with(|s| s.password_guesses = 4).await;
    {
        let mut route = w.host.route.lock().unwrap();
        route.in_guest = true;
        route.verifier = None;
    }
    w.vm().with(|vm| vm.role = role);
    w
}

fn made(password: &str) -> Option<String> {
    Some(dormouse_pooler::verifier::make(password, support::ITERATIONS).unwrap())
}

#[tokio::test]
async fn a_role_of_the_guest_s_is_asked_for_at_each_login() {
    let w = world_with_role(Some((made(PASSWORD), false))).await;
    let client = w.connect().await;
    assert_eq!(ask(&client, "hello").await, "hello");
    // The one that asked was the superuser, and is gone.
    let asked = w.vm().with(|vm| vm.hellos.len());
    assert_eq!(asked, 2);
    w.vm().until(|vm| (vm.sessions.len() == 1).then_some(())).await;
    w.vm().with(|vm| vm.role = Some((made("new"), false)));
    assert_eq!(code(&w.try_connect().await.err().unwrap()), "28P01");
    drop(w.config().password("new").connect(tokio_postgres::NoTls).await.unwrap());
    // The database sleeps like any other.
    w.until("the questions to be over", || w.sessions.active(w.host.database).starting == 0).await;
    drop(client);
    w.vm().until(|vm| vm.sessions.is_empty().then_some(())).await;
    w.suspend().await;
}

#[tokio::test]
async fn a_role_without_a_password_that_is_valid_does_not_log_in() {
    for role in [None, Some((None, false)), Some((made(PASSWORD), true)), Some((Some("md5aaaa".into()), false))] {
        let w = world_with_role(role.clone()).await;
        assert_eq!(code(&w.try_connect().await.err().unwrap()), "28P01", "{role:?}");
        // What the service keeps holds where there is none in SQL, but for an expired role or one that is gone.
        w.host.route.lock().unwrap().verifier = made(PASSWORD);
        let good = w.try_connect().await.is_ok();
        assert_eq!(good, role == Some((None, false)), "{role:?}");
    }
}

#[tokio::test]
async fn a_guest_that_cannot_be_asked_is_no_wrong_password() {
    let w = world_with_role(None).await;
    *w.host.wake_error.lock().unwrap() = Some(dormouse_pooler::WakeError::Unavailable("no disk".into()));
    assert_eq!(code(&w.try_connect().await.err().unwrap()), "57P03");
    *w.host.wake_error.lock().unwrap() = None;
    w.vm().with(|vm| vm.greeting = Some(message(b'E', b"SFATAL\0VFATAL\0C53300\0Mfull\0\0")));
    assert_eq!(code(&w.try_connect().await.err().unwrap()), "57P03");
}

#[tokio::test]
async fn strangers_who_prove_nothing_have_a_guest_asked_so_often() {
    let w = world_with_role(Some((made(PASSWORD), false))).await;
    let user = w.user();
    for _ in 0..4 {
        let mut raw = say(&w, &startup(0, &[("user", &user)])).await;
        assert_eq!(raw.receive().await.unwrap().0, b'R');
    }
    let asked = || w.vm().with(|vm| vm.hellos.len());
    w.until("the last to be gone", || w.sessions.metrics().clients.get() == 0).await;
    assert_eq!(asked(), 4);
    let mut raw = say(&w, &startup(0, &[("user", &user)])).await;
    assert_eq!(raw.refused().await, ("53400".to_owned(), "too many failed logins; try again in a minute".to_owned()));
    assert_eq!(asked(), 4);
}

#[tokio::test]
async fn wrong_passwords_are_limited_however_many_come_at_once() {
    let w = World::with(|s| s.password_guesses = 4).await;
    let config = w.config().password("wrong").clone();
    let all = (0..20).map(|_| config.connect(tokio_postgres::NoTls));
    let mut codes: Vec<String> = futures_util::future::join_all(all).await.into_iter().map(|r| code(&r.err().unwrap())).collect();
    codes.sort();
    assert_eq!(codes.iter().filter(|c| *c == "28P01").count(), 4, "{codes:?}");
    assert_eq!(codes.iter().filter(|c| *c == "53400").count(), 16, "{codes:?}");
    assert_eq!(code(&w.try_connect().await.err().unwrap()), "53400");
    assert_eq!(w.wakes(), 0);
}

/// A client that asks for what `World::connect` does, and has been challenged: its proof.
async fn challenged(w: &World, password: &str) -> (Raw, Vec<u8>) {
    let mut raw = say(w, &startup(0, &[("client_encoding", "UTF8"), ("user", &w.user()), ("database", "app")])).await;
    let proof = raw.challenged(password).await;
    (raw, proof)
}

/// A world in which that was proven, and whose database sleeps.
async fn world_with_proof(change: impl FnOnce(&mut Settings)) -> World {
    let w = World::with(change).await;
    drop(w.connect().await);
    w.vm().until(|vm| vm.sessions.is_empty().then_some(())).await;
    w.suspend().await;
    assert_eq!(w.wakes(), 1);
    w
}

fn kinds(messages: &[(u8, Vec<u8>)]) -> String {
    messages.iter().map(|(kind, _)| *kind as char).collect()
}

/// A session has begun in the guest.
async fn begun(w: &World, number: u64) {
    w.until("a session to begin", || w.vm().with(|vm| vm.sessions.contains_key(&number))).await;
}

#[tokio::test]
async fn who_proved_the_same_lately_has_the_session_begun_before_the_proof() {
    let w = world_with_proof(|_| {}).await;
    let (mut raw, proof) = challenged(&w, PASSWORD).await;
    begun(&w, 2).await;
    raw.send(&proof).await;
    let messages = raw.authenticate(PASSWORD).await;
    let kinds = kinds(&messages);
    assert!(kinds.starts_with("RRS") && kinds.ends_with("KZ"), "{kinds}");
    raw.send(&query("hello")).await;
    assert_eq!(raw.receive().await.unwrap().0, b'T');
    assert_eq!((w.wakes(), w.vm().with(|vm| vm.hellos.len())), (2, 2));
}

#[tokio::test]
async fn one_who_proves_nothing_is_told_nothing_of_what_was_begun_and_has_no_more_begun() {
    let w = world_with_proof(|_| {}).await;
    let clients = || w.sessions.active(w.host.database).clients;
    let (mut raw, proof) = challenged(&w, "wrong").await;
    begun(&w, 2).await;
    raw.send(&proof).await;
    assert_eq!(kinds(&raw.authenticate("wrong").await), "E");
    w.vm().until(|vm| vm.sessions.is_empty().then_some(())).await;
    w.until("its place to be free", || w.sessions.active(w.host.database) == Default::default()).await;
    // Whatever is begun ahead has its place before the proof can come.
    let (raw, _) = challenged(&w, PASSWORD).await;
    assert_eq!((clients(), w.vm().with(|vm| vm.hellos.len())), (0, 2));
    drop(raw);
    let client = w.connect().await;
    let (_raw, _) = challenged(&w, PASSWORD).await;
    w.until("one begun for another proof", || clients() == 2).await;
    drop(client);
}

#[tokio::test]
async fn nothing_is_begun_before_the_proof_for_who_asks_for_something_else_or_if_it_is_not_to_be() {
    for (asks, limit) in [([("options", "-c a=b"), ("database", "app")], 3000), ([("client_encoding", "UTF8"), ("database", "app")], 0)] {
        let w = world_with_proof(|s| s.begin_ahead_ms = limit).await;
        let user = w.user();
        let mut raw = say(&w, &startup(0, &[asks[0], ("user", &user), asks[1]])).await;
        let proof = raw.challenged(PASSWORD).await;
        // It is read when what is begun ahead would have its place.
        w.until("the challenge to be over", || w.sessions.metrics().clients.get() == 1).await;
        assert_eq!(w.sessions.active(w.host.database).clients, 0, "{asks:?}");
        raw.send(&proof).await;
        assert_eq!(raw.authenticate(PASSWORD).await.last().unwrap().0, b'Z');
    }
}

#[tokio::test]
async fn a_client_that_is_silent_has_what_was_begun_taken_away_and_may_still_log_in() {
    let w = world_with_proof(|s| s.begin_ahead_ms = 30).await;
    let (mut raw, proof) = challenged(&w, PASSWORD).await;
    begun(&w, 2).await;
    w.vm().until(|vm| vm.sessions.is_empty().then_some(())).await;
    w.until("its place to be free", || w.sessions.active(w.host.database) == Default::default()).await;
    raw.send(&proof).await;
    assert_eq!(raw.authenticate(PASSWORD).await.last().unwrap().0, b'Z');
    assert_eq!(w.vm().with(|vm| vm.hellos.len()), 3);
}

#[tokio::test]
async fn what_failed_before_the_proof_is_begun_again_after_it() {
    let w = world_with_proof(|_| {}).await;
    *w.host.wake_error.lock().unwrap() = Some(dormouse_pooler::WakeError::Unavailable("no disk".into()));
    let (mut raw, proof) = challenged(&w, PASSWORD).await;
    w.until("the wake to fail", || w.wakes() == 2 && w.sessions.active(w.host.database).clients == 0).await;
    *w.host.wake_error.lock().unwrap() = None;
    raw.send(&proof).await;
    assert_eq!(raw.authenticate(PASSWORD).await.last().unwrap().0, b'Z');
}

#[tokio::test]
async fn what_was_begun_in_a_vm_that_is_gone_is_begun_again_after_the_proof() {
    let w = world_with_proof(|_| {}).await;
    let (mut raw, proof) = challenged(&w, PASSWORD).await;
    begun(&w, 2).await;
    w.vm().kill();
    w.sessions.end(w.host.database, "57P01", "gone");
    raw.send(&proof).await;
    assert_eq!(raw.authenticate(PASSWORD).await.last().unwrap().0, b'Z');
    raw.send(&query("hello")).await;
    assert_eq!(raw.receive().await.unwrap().0, b'T');
}
