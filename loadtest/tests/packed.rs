//! Packed sleep: a sleeping database in one small file, from which it goes on as from its snapshot.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_loadtest::client::Client;
use dormouse_loadtest::footprint::disk_usage;
use dormouse_loadtest::rest::Created;
use dormouse_loadtest::used;
use dormouse_loadtest::wake::START_TIME;
use harness::{Server, connect_again, until};

fn folder(server: &Server, created: &Created) -> PathBuf {
    server.home.join("databases").join(&created.database.id)
}

/// A used database, and a session with a temporary table.
fn used(server: &Server) -> (Created, Client) {
    let created = used::create(&server.rest, &dormouse_loadtest::wake::name("packed"), true).unwrap();
    let mut client = created.connect().unwrap();
    client.query("create temporary table kept as select 42 as answer").unwrap();
    (created, client)
}

fn pack(server: &Server, created: &Created) {
    server.rest.suspend(&created.database.id).unwrap();
    server.rest.pack(&created.database.id).unwrap();
    let folder = folder(server, created);
    assert!(folder.join("packed").exists() && !folder.join("snapshot").exists() && !folder.join("layer/files").exists());
}

#[test]
fn a_packed_database_is_small_and_its_session_goes_on() {
    if !harness::have_kvm() {
        return;
    }
    let mut server = Server::start();
    let (created, mut held) = used(&server);
    let id = created.database.id.as_str();
    let started = held.value(START_TIME).unwrap();
    for round in 0..3 {
        server.rest.suspend(id).unwrap();
        let before = disk_usage(&folder(&server, &created)).unwrap();
        pack(&server, &created);
        let after = disk_usage(&folder(&server, &created)).unwrap();
        assert!(after < before / 2, "{after} of {before} bytes");
        // Packed already is no error, and nothing.
        server.rest.pack(id).unwrap();
        let shown = server.rest.call("GET", &format!("/v1/databases/{id}"), "").unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&shown.body).unwrap();
        assert_eq!(shown["state"], "suspended");
        assert!(shown["packed_bytes"].as_u64().unwrap() < after, "{shown}");

        assert_eq!(held.value("select answer from kept").unwrap(), "42");
        assert_eq!(held.value(START_TIME).unwrap(), started, "it did not go on");
        // A change waits until the packed file is spent.
        held.query("insert into shop.sale (customer, item, quantity) values (1, 1, 1)").unwrap();
        assert!(!folder(&server, &created).join("packed").exists());
        let mut other = created.connect().unwrap();
        assert!(used::is_whole(&mut other).unwrap());
        assert_eq!(
            other.value("select count(*) from shop.sale where id > 1000").unwrap(),
            (3 + round + 1).to_string()
        );
        other.close().unwrap();
    }
    // Over a restart of the server, which holds no session; and a cold start from it, as an operator asks for one.
    pack(&server, &created);
    server.stop();
    server.run();
    let mut client = connect_again(&created.target().unwrap());
    assert_eq!(client.value(START_TIME).unwrap(), started);
    client.close().unwrap();
    pack(&server, &created);
    assert_eq!(server.rest.call("POST", &format!("/v1/databases/{id}/restart"), "").unwrap().status, 200);
    assert!(!folder(&server, &created).join("packed").exists());
    let mut client = created.connect().unwrap();
    assert_ne!(client.value(START_TIME).unwrap(), started);
    assert!(used::is_whole(&mut client).unwrap());
    client.close().unwrap();
    pack(&server, &created);
    server.rest.delete(id).unwrap();
    assert!(!folder(&server, &created).exists());
}

#[test]
fn damage_in_a_packed_file_is_told_and_never_wrong_data() {
    if !harness::have_kvm() {
        return;
    }
    let server = Server::start();
    let (created, held) = used(&server);
    held.close().unwrap();
    pack(&server, &created);
    let id = created.database.id.as_str();
    let packed = folder(&server, &created).join("packed");
    let good = fs::read(&packed).unwrap();
    let damaged = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    // The header, the layer's part, an end that is gone, all of it gone: its data cannot be had, and nothing else is.
    for (case, bytes) in
        [("header", damaged(30)), ("layer", damaged(1024 + 5000)), ("cut", good[..4000].to_vec()), ("empty", Vec::new())]
    {
        fs::write(&packed, bytes).unwrap();
        let error = created.connect().err().unwrap_or_else(|| panic!("{case}: it was woken")).to_string();
        assert!(error.contains("packed file is damaged"), "{case}: {error}");
        assert_eq!(server.rest.database(id).unwrap().state, "error", "{case}");
    }
    fs::remove_file(&packed).unwrap();
    let error = created.connect().err().unwrap().to_string();
    assert!(error.contains("is damaged"), "without its packed file: {error}");
    let events = server.rest.call("GET", &format!("/v1/databases/{id}/events"), "").unwrap();
    assert!(harness::text(&events.body).contains("packed file is damaged"), "{}", harness::text(&events.body));
    // Put back, all is there. A snapshot that is damaged in it costs the sessions alone.
    fs::write(&packed, damaged(good.len() - 100)).unwrap();
    let mut client = created.connect().unwrap();
    assert!(used::is_whole(&mut client).unwrap());
    assert!(!packed.exists());
    client.close().unwrap();
    server.rest.suspend(id).unwrap();
    let events = server.rest.call("GET", &format!("/v1/databases/{id}/events"), "").unwrap();
    assert!(harness::text(&events.body).contains("packed snapshot cannot be used"), "{}", harness::text(&events.body));
}

#[test]
fn whoever_needs_a_database_that_is_being_packed_calls_it_off() {
    if !harness::have_kvm() {
        return;
    }
    let server = Server::start();
    let (created, mut held) = used(&server);
    let id = created.database.id.as_str();
    let (mut called_off, mut packed) = (0, 0);
    for ms in [0, 20, 60, 150, 400, 1000, 2500] {
        server.rest.suspend(id).unwrap();
        std::thread::scope(|scope| {
            let packing = scope.spawn(|| server.rest.pack(id));
            // Not to wait for something: the moment is what varies.
            std::thread::sleep(Duration::from_millis(ms));
            assert_eq!(held.value("select answer from kept").unwrap(), "42", "after {ms} ms");
            match packing.join().unwrap() {
                Ok(()) => packed += 1,
                Err(_) => called_off += 1,
            }
        });
        assert!(!folder(&server, &created).join("packed.tmp").exists());
    }
    assert!(called_off > 0, "{packed} packed, none called off");
}

#[test]
fn a_database_is_packed_by_itself_and_one_never_used_is_not() {
    if !harness::have_kvm() {
        return;
    }
    let server = Server::start_with(&[("DORMOUSE_HOST_PACK_AFTER_S", 1)]);
    let fresh = server.create();
    let (created, mut held) = used(&server);
    assert!(server.rest.pack(&fresh.database.id).is_err());
    server.rest.suspend(&created.database.id).unwrap();
    let packed = folder(&server, &created).join("packed");
    until("it is packed", || packed.exists() && !folder(&server, &created).join("layer/files").exists());
    assert_eq!(held.value("select answer from kept").unwrap(), "42");
    // And again after its next sleep.
    server.rest.suspend(&created.database.id).unwrap();
    until("it is packed again", || packed.exists() && !folder(&server, &created).join("layer/files").exists());
    assert!(!folder(&server, &fresh).exists());
}
