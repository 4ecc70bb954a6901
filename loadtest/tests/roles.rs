//! Logins of roles made in SQL, and passwords set in SQL: PostgreSQL's rules, through the pooler (`docs/logins.md`).

#![allow(clippy::unwrap_used)]

mod harness;

use std::io::{Read, Write};
use std::net::TcpStream;

use dormouse_loadtest::client::{Client, ClientError, Target};
use dormouse_loadtest::rest::{self, Created};
use harness::{Server, programs, succeed};

fn as_role(created: &Created, role: &str, password: &str) -> Target {
    Target {
        user: format!("{role}.{}", created.database.id),
        password: password.to_owned(),
        ..created.target().unwrap()
    }
}

fn login(created: &Created, role: &str, password: &str) -> Result<Client, ClientError> {
    Client::connect(&as_role(created, role, password))
}

/// SQLSTATE and text of a login that is refused.
fn refused(created: &Created, role: &str, password: &str) -> (String, String) {
    match login(created, role, password) {
        Err(ClientError::Server(error)) => (error.code, error.message),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{role} logged in with {password}"),
    }
}

fn wrong_password(created: &Created, role: &str) -> (String, String) {
    let user = &as_role(created, role, "").user;
    let text = format!("password authentication failed for user \"{user}\"");
    ("28P01".to_owned(), text)
}

fn user(client: &mut Client) -> String {
    client
        .value("select session_user || ' ' || current_user || ' ' || usename from pg_stat_activity where pid = pg_backend_pid()")
        .unwrap()
}

#[test]
fn roles_made_in_sql_log_in_by_postgresql_s_rules() {
    let Some((server, created, mut owner)) = harness::session() else {
        return;
    };
    let id = created.database.id.as_str();
    let mut run = |sql: &str| {
        owner
            .query(sql)
            .map(drop)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    };
    run("create role reader login password 'first'");
    run("create role \"Mixed case.x\" login password 'it''s'");
    run("create role idle nologin password 'first'");
    run("create role past login password 'first' valid until '2020-01-01'");
    run("create role bare login");
    run("create role two login password 'first' connection limit 2");
    run("alter role reader set work_mem = '7MB'");
    run("create database other");

    // psql, as a person would.
    let target = as_role(&created, "reader", "first");
    let mut psql = programs().command("psql");
    psql.args([
        "-XAtq",
        "-h",
        "127.0.0.1",
        "-U",
        &target.user,
        "-d",
        "app",
        "-c",
        "select session_user",
    ]);
    psql.args(["-p", &server.pooler_port.to_string()])
        .env("PGPASSWORD", "first");
    assert_eq!(succeed(psql.output().unwrap()), "reader");

    let mut reader = login(&created, "reader", "first").unwrap();
    assert_eq!(user(&mut reader), "reader reader reader");
    assert_eq!(reader.value("show work_mem").unwrap(), "7MB");
    assert_eq!(
        reader.query("set role app").unwrap_err().code(),
        Some("42501")
    );
    assert_eq!(
        reader
            .query("set session authorization postgres")
            .unwrap_err()
            .code(),
        Some("42501")
    );
    let mut mixed = login(&created, "Mixed case.x", "it's").unwrap();
    assert_eq!(mixed.value("select session_user").unwrap(), "Mixed case.x");
    let elsewhere = |database: &str| {
        let target = as_role(&created, "reader", "first");
        Client::connect(&Target {
            database: database.to_owned(),
            ..target
        })
    };
    assert_eq!(
        elsewhere("other")
            .unwrap()
            .value("select current_database()")
            .unwrap(),
        "other"
    );
    assert_eq!(elsewhere("nowhere").err().unwrap().code(), Some("3D000"));

    // Refused, each as PostgreSQL does.
    for (role, password) in [
        ("reader", "wrong"),
        ("nobody", "first"),
        ("bare", ""),
        ("past", "first"),
        ("postgres", ""),
    ] {
        assert_eq!(
            refused(&created, role, password),
            wrong_password(&created, role)
        );
    }
    let idle = refused(&created, "idle", "first");
    assert_eq!(
        (idle.0.as_str(), idle.1.as_str()),
        ("28000", "role \"idle\" is not permitted to log in")
    );
    let places = [
        login(&created, "two", "first").unwrap(),
        login(&created, "two", "first").unwrap(),
    ];
    let third = refused(&created, "two", "first");
    assert_eq!(
        (third.0.as_str(), third.1.as_str()),
        ("53300", "too many connections for role \"two\"")
    );
    drop(places);
    run("revoke connect on database other from public");
    assert_eq!(elsewhere("other").err().unwrap().code(), Some("42501"));
    run("alter database other allow_connections false");
    assert_eq!(elsewhere("other").err().unwrap().code(), Some("55000"));

    // A change holds at the next login, and across a sleep. Sessions stay.
    run("alter role reader password 'second' valid until 'infinity'");
    assert_eq!(
        refused(&created, "reader", "first"),
        wrong_password(&created, "reader")
    );
    server.rest.suspend(id).unwrap();
    assert_eq!(
        refused(&created, "reader", "first"),
        wrong_password(&created, "reader")
    );
    server.rest.suspend(id).unwrap();
    assert_eq!(
        user(&mut login(&created, "reader", "second").unwrap()),
        "reader reader reader"
    );
    assert_eq!(user(&mut reader), "reader reader reader");
    // What is rolled back was never set.
    run("begin; alter role reader password 'third'; rollback");
    assert_eq!(
        refused(&created, "reader", "third"),
        wrong_password(&created, "reader")
    );
    // As may whoever logs in: her own password, and no other's.
    reader.query("alter role reader password 'fourth'").unwrap();
    assert_eq!(
        reader
            .query("alter role two password 'x'")
            .unwrap_err()
            .code(),
        Some("42501")
    );
    login(&created, "reader", "fourth").unwrap();
    run("alter role reader rename to renamed");
    assert_eq!(
        refused(&created, "reader", "fourth"),
        wrong_password(&created, "reader")
    );
    login(&created, "renamed", "fourth").unwrap();
    run("alter role bare valid until '2020-01-01'");
    run("drop role two");
    server.rest.suspend(id).unwrap();
    assert_eq!(
        refused(&created, "two", "first"),
        wrong_password(&created, "two")
    );

    // Not those that the pooler could not check.
    for sql in [
        "create role old login password 'md5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'",
        "set password_encryption = md5; create role old login password 'plain'",
    ] {
        assert_eq!(owner.query(sql).unwrap_err().code(), Some("0A000"), "{sql}");
    }
}

#[test]
fn the_owner_s_password_is_the_one_set_last_in_sql_or_by_the_api() {
    let Some((mut server, created, mut owner)) = harness::session() else {
        return;
    };
    let id = created.database.id.clone();
    let first = created.target().unwrap().password;
    let holds = |good: &str, bad: &[&str]| {
        login(&created, "app", good).unwrap().close().unwrap();
        for bad in bad {
            assert_eq!(
                refused(&created, "app", bad),
                wrong_password(&created, "app")
            );
        }
    };
    // Others' passwords leave the owner's to the service: wrong ones wake nothing, but for the first behind a right one (docs/logins.md).
    owner.query("create role other login password 'x'").unwrap();
    for _ in 0..2 {
        server.rest.suspend(&id).unwrap();
        assert_eq!(
            refused(&created, "app", "wrong"),
            wrong_password(&created, "app")
        );
    }
    assert_eq!(rest::vm_processes(&id), Vec::<u32>::new());

    owner
        .query("begin; alter role app password 'undone'; rollback")
        .unwrap();
    holds(&first, &["undone"]);
    owner.query("alter role app password 'of her own'").unwrap();
    holds("of her own", &[&first]);
    server.rest.suspend(&id).unwrap();
    holds("of her own", &[&first]);
    // Over a restart of the server, too.
    server.stop();
    server.run();
    holds("of her own", &[&first]);

    let reset = || {
        let path = format!("/v1/databases/{id}/password");
        let answer = server.rest.call("POST", &path, "").unwrap();
        assert_eq!(answer.status, 200);
        let answer: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        Target::parse(answer["connection_uri"].as_str().unwrap())
            .unwrap()
            .password
    };
    server.rest.suspend(&id).unwrap();
    let second = reset();
    holds(&second, &["of her own", &first]);
    let mut owner = login(&created, "app", &second).unwrap();
    owner.query("alter role app password null").unwrap();
    holds(&second, &[]);
    // PostgreSQL leaves this to whoever has ADMIN OPTION on the role, and that is no tenant.
    let mut superuser = Client::connect(&server.rest.superuser(&id).unwrap()).unwrap();
    superuser
        .query("alter role app valid until '2020-01-01'")
        .unwrap();
    assert_eq!(
        refused(&created, "app", &second),
        wrong_password(&created, "app")
    );
    let third = reset();
    holds(&third, &[]);
}

/// A startup packet of this user: what comes of it, up to where a password would be due.
fn knock(server: &Server, created: &Created, role: &str) -> Vec<u8> {
    let mut body = vec![0, 3, 0, 0];
    body.extend_from_slice(format!("user\0{role}.{}\0\0", created.database.id).as_bytes());
    let mut stream = TcpStream::connect(("127.0.0.1", server.pooler_port)).unwrap();
    stream
        .write_all(&(body.len() as u32 + 4).to_be_bytes())
        .unwrap();
    stream.write_all(&body).unwrap();
    let mut answer = vec![0; 512];
    let length = stream.read(&mut answer).unwrap();
    answer.truncate(length);
    answer
}

fn says(answer: &[u8], sqlstate: &str) -> bool {
    answer.starts_with(b"E")
        && answer
            .windows(6)
            .any(|part| part == format!("C{sqlstate}").as_bytes())
}

#[test]
fn guesses_of_passwords_and_roles_are_limited() {
    let limit = [("DORMOUSE_POOLER_PASSWORD_GUESSES", 4)];
    let Some((mut server, created, mut owner)) = harness::session_with(&limit) else {
        return;
    };
    let id = created.database.id.as_str();
    owner
        .query("create role reader login password 'first'")
        .unwrap();
    owner.close().unwrap();
    // The server forgets that it knows this address.
    server.stop();
    server.run();
    // Those who ask for roles and prove nothing wake a database so often and no more.
    let mut woken = 0;
    loop {
        server.rest.suspend(id).unwrap();
        let answer = knock(&server, &created, &format!("nobody{woken}"));
        if says(&answer, "53400") {
            break;
        }
        assert!(answer.starts_with(b"R"), "{answer:?}");
        woken += 1;
        assert!(woken <= 3);
    }
    assert_eq!(rest::vm_processes(id), Vec::<u32>::new());
    assert_eq!(woken, 3);
    // They keep out other strangers, but neither the owner nor addresses from which a password was proven.
    assert_eq!(refused(&created, "reader", "first").0, "53400");
    created.connect().unwrap();
    login(&created, "reader", "first").unwrap();

    let other = server.create();
    let good = other.target().unwrap().password;
    for _ in 0..4 {
        assert_eq!(
            refused(&other, "app", "wrong"),
            wrong_password(&other, "app")
        );
    }
    // Not even the right one, from this address: it would tell a guesser.
    let limited = refused(&other, "app", &good);
    assert_eq!(
        (limited.0.as_str(), limited.1.as_str()),
        ("53400", "too many failed logins; try again in a minute")
    );
    // Of this database only.
    created.connect().unwrap();
}

#[test]
fn guesses_of_cancel_keys_are_limited() {
    let limit = [("DORMOUSE_POOLER_CANCEL_GUESSES", 3)];
    let Some((server, created, mut client)) = harness::session_with(&limit) else {
        return;
    };
    let mut watcher = created.connect().unwrap();
    let mut cancel = |client: &mut Client| {
        client.send("select pg_sleep(5)").unwrap();
        // A cancel that comes before its query, over another connection, cancels nothing.
        let running = "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(5)'";
        harness::until("it sleeps", || watcher.value(running).unwrap() == "1");
        client.canceller().cancel().unwrap();
        client
            .finish()
            .err()
            .map(|error| error.code().map(str::to_owned))
    };
    assert_eq!(cancel(&mut client), Some(Some("57014".to_owned())));
    for key in 0..3u32 {
        let mut stream = TcpStream::connect(("127.0.0.1", server.pooler_port)).unwrap();
        let packet: Vec<u8> = [16, 80_877_102, 1, key]
            .iter()
            .flat_map(|word: &u32| word.to_be_bytes())
            .collect();
        stream.write_all(&packet).unwrap();
        // Closed without a word, once it has been looked at.
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    }
    assert_eq!(cancel(&mut client), None);
}
