//! Bad input: each a clear message that says what to do, and nothing lost.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;

use dormouse_loadtest::client::{Client, ClientError, Target};
use dormouse_loadtest::rest;
use dormouse_loadtest::wake::START_TIME;
use harness::{Server, succeed, text};

fn code(target: &Target) -> String {
    match Client::connect(target) {
        Err(ClientError::Server(error)) => error.code,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("connected"),
    }
}

#[test]
fn a_wrong_password_or_name_wakes_nothing() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = &created.database.id;
    server.rest.suspend(id).unwrap();
    let good = created.target().unwrap();
    let bad = Target {
        password: "wrong".to_owned(),
        ..good.clone()
    };
    assert_eq!(code(&bad), "28P01");
    // An unknown database and an unknown role look the same as a wrong password.
    let unknown = Target {
        user: "owner.db_00000000000000000000".to_owned(),
        ..good.clone()
    };
    assert_eq!(code(&unknown), "28P01");
    let role = Target {
        user: format!("nobody.{id}"),
        ..good.clone()
    };
    assert_eq!(code(&role), "28P01");
    assert_eq!(server.rest.database(id).unwrap().state, "suspended");
    assert_eq!(rest::vm_processes(id), Vec::<u32>::new());
    assert_eq!(
        Client::connect(&good).unwrap().value("select 1").unwrap(),
        "1"
    );
}

#[test]
fn a_damaged_snapshot_means_a_cold_start_that_the_log_tells_of() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = &created.database.id;
    succeed(server.psql(&created, "create table stays as select 7 as n"));
    let told = || {
        let log = server.home.join("databases").join(id).join("vmm.log");
        let vmm = fs::read_to_string(log).unwrap_or_default();
        vmm.matches("the snapshot cannot be used").count()
            + server.logs().matches("started cold").count()
    };
    for damage in ["cut", "flipped", "emptied"] {
        let started = succeed(server.psql(&created, START_TIME));
        server.rest.suspend(id).unwrap();
        let snapshot = server.home.join("databases").join(id).join("snapshot");
        let mut bytes = fs::read(&snapshot).unwrap();
        match damage {
            "cut" => bytes.truncate(bytes.len() / 2),
            "flipped" => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x40;
            }
            _ => bytes.clear(),
        }
        fs::write(&snapshot, bytes).unwrap();
        let before = told();
        assert_eq!(
            succeed(server.psql(&created, "select n from stays")),
            "7",
            "{damage}"
        );
        assert_ne!(
            succeed(server.psql(&created, START_TIME)),
            started,
            "{damage}: it did not start cold"
        );
        assert!(
            told() > before,
            "{damage}: no log tells of it:\n{}",
            server.logs()
        );
    }
}

#[test]
fn a_second_server_on_the_same_home_is_refused() {
    if !harness::have_kvm() {
        return;
    }
    let server = Server::start();
    let mut second = server.command();
    second
        .env("DORMOUSE_API_LISTEN", "127.0.0.1:0")
        .env("DORMOUSE_POOLER_LISTEN", "127.0.0.1:0");
    let second = second.arg("up").output().unwrap();
    assert!(!second.status.success());
    let message = text(&second.stderr);
    assert!(message.contains(server.home.to_str().unwrap()), "{message}");
    assert_eq!(server.rest.call("GET", "/healthz", "").unwrap().status, 200);
}

#[test]
fn a_port_in_use_names_its_setting() {
    if !harness::have_kvm() {
        return;
    }
    let first = Server::start();
    let other = Server::prepare();
    for (variable, setting, place) in [
        (
            "DORMOUSE_API_LISTEN",
            "api-listen",
            first.rest.base.trim_start_matches("http://").to_owned(),
        ),
        (
            "DORMOUSE_POOLER_LISTEN",
            "pooler-listen",
            format!("127.0.0.1:{}", first.pooler_port),
        ),
    ] {
        let refused = other
            .command()
            .arg("up")
            .env(variable, &place)
            .output()
            .unwrap();
        assert!(!refused.status.success());
        let message = text(&refused.stderr);
        assert!(
            message.contains(&place)
                && message
                    .replace(['_', '.'], "-")
                    .to_lowercase()
                    .contains(setting),
            "{message}"
        );
    }
}

#[test]
fn the_api_says_what_is_wrong_as_problem_json() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let name = &created.database.name;
    let long = "x".repeat(64);
    for (method, path, body, status) in [
        (
            "POST",
            "/v1/databases".to_owned(),
            format!("{{\"name\":\"{name}\"}}"),
            409,
        ),
        (
            "POST",
            "/v1/databases".to_owned(),
            "{\"name\":\"Not A Name\"}".to_owned(),
            422,
        ),
        (
            "POST",
            "/v1/databases".to_owned(),
            format!("{{\"name\":\"{long}\"}}"),
            422,
        ),
        ("POST", "/v1/databases".to_owned(), "{".to_owned(), 400),
        (
            "GET",
            "/v1/databases/db_00000000000000000000".to_owned(),
            String::new(),
            404,
        ),
        (
            "POST",
            "/v1/databases/db_00000000000000000000/suspend".to_owned(),
            String::new(),
            404,
        ),
        (
            "DELETE",
            "/v1/databases/..%2f..".to_owned(),
            String::new(),
            404,
        ),
    ] {
        let response = server.rest.call(method, &path, &body).unwrap();
        assert_eq!(
            response.status,
            status,
            "{method} {path} {body}: {}",
            text(&response.body)
        );
        assert_eq!(
            response.header("content-type"),
            Some("application/problem+json"),
            "{method} {path}"
        );
        let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(problem["status"], status);
        assert!(
            problem["title"].is_string() && problem["detail"].is_string(),
            "{problem}"
        );
    }
    let mut stranger = server.rest.clone();
    stranger.key = "nonsense".to_owned();
    assert_eq!(
        stranger.call("GET", "/v1/databases", "").unwrap().status,
        401
    );
}

#[test]
fn another_tenants_database_does_not_exist() {
    if !harness::have_kvm() {
        return;
    }
    let server = Server::start();
    let tenant = |name: &str| {
        let mut create = server.command();
        create.args(["tenant", "create", name]);
        let printed = succeed(create.output().unwrap());
        let key = printed.split_whitespace().last().unwrap().to_owned();
        rest::Rest {
            base: server.rest.base.clone(),
            key,
        }
    };
    let (ada, bob) = (tenant("ada"), tenant("bob"));
    let created = ada.create("mine").unwrap();
    let id = &created.database.id;
    assert_eq!(ada.database(id).unwrap().name, "mine");
    for (method, path) in [
        ("GET", format!("/v1/databases/{id}")),
        ("POST", format!("/v1/databases/{id}/suspend")),
        ("POST", format!("/v1/databases/{id}/resume")),
        ("DELETE", format!("/v1/databases/{id}")),
    ] {
        assert_eq!(
            bob.call(method, &path, "").unwrap().status,
            404,
            "{method} {path}"
        );
    }
    assert!(!text(&bob.call("GET", "/v1/databases", "").unwrap().body).contains(id.as_str()));
    // Names are unique to a tenant, not to the server.
    bob.create("mine").unwrap();
    assert_eq!(created.connect().unwrap().value("select 1").unwrap(), "1");
}

#[test]
fn a_deleted_database_is_gone_with_its_files() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = &created.database.id;
    let mut held = created.connect().unwrap();
    held.query("create table t ()").unwrap();
    server.rest.delete(id).unwrap();
    harness::until("it is gone", || {
        server
            .rest
            .call("GET", &format!("/v1/databases/{id}"), "")
            .unwrap()
            .status
            == 404
    });
    assert!(!server.home.join("databases").join(id).exists());
    assert_eq!(rest::vm_processes(id), Vec::<u32>::new());
    assert_eq!(held.query("select 1").unwrap_err().code(), Some("57P01"));
    assert_eq!(code(&created.target().unwrap()), "28P01");
}

#[test]
fn a_machine_without_kvm_is_told_what_is_missing() {
    if !harness::have_root("hiding /dev/kvm") {
        return;
    }
    let mut server = Server::prepare();
    let dev = server.home.join("dev");
    fs::create_dir(&dev).unwrap();
    // A /dev with all that a program wants but the one.
    let script = format!(
        "mount -t tmpfs tmpfs {dev} && cp -a /dev/null /dev/zero /dev/random /dev/urandom {dev} \
         && mount --move {dev} /dev && exec \"$@\"",
        dev = dev.display()
    );
    server.wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"]
        .map(str::to_owned)
        .to_vec();
    let output = server.command().arg("up").output().unwrap();
    assert!(!output.status.success());
    let told = text(&output.stderr);
    assert!(told.contains("/dev/kvm cannot be used"), "{told}");
    assert!(told.contains("kvm_intel or kvm_amd"), "{told}");
}
