//! A database's folder is a plain Postgres data directory once its layer and its template are merged: nobody is locked
//! in, and what was acknowledged is in the files that the host keeps.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;

use dormouse_loadtest::client::{Client, Target};
use dormouse_loadtest::native::Native;
use dormouse_vmm::layer;
use harness::programs;

#[test]
fn stock_postgres_opens_the_merged_layer_of_a_sleeping_database() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    let mut client = created.connect().unwrap();
    client
        .query("create table kept (n int primary key, filler text)")
        .unwrap();
    client
        .query("insert into kept select n, repeat('x', n % 1000) from generate_series(1, 5000) n")
        .unwrap();
    // Each acknowledged by itself, the last just before it sleeps; one transaction is open.
    for n in 5001..=5100 {
        client
            .query(&format!("insert into kept values ({n}, 'alone')"))
            .unwrap();
    }
    let sum = "select count(*) || ' ' || sum(n) || ' ' || sum(length(filler)) from kept";
    let before = client.value(sum).unwrap();
    client
        .query("begin; insert into kept values (6000, 'never committed')")
        .unwrap();
    server.rest.suspend(id).unwrap();

    let manifest = fs::read(server.home.join("images/current-17/image.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let template = manifest["template"].as_str().unwrap();
    let mut native = Native::without_data(&programs(), None).unwrap();
    let merged = layer::merge(
        &server.home.join("databases").join(id).join("layer"),
        &server.home.join("templates").join(template),
        template,
        &native.data(),
    )
    .unwrap();
    assert!(merged.files > 900, "{merged:?}");

    if let Err(error) = native.start() {
        panic!(
            "{error}: {}",
            fs::read_to_string(native.log()).unwrap_or_default()
        );
    }
    let app = Target {
        database: "app".to_owned(),
        ..native.target()
    };
    let mut stock = Client::connect(&app).unwrap();
    assert_eq!(stock.value(sum).unwrap(), before);
    // The index agrees with the table, and the folder can be written to.
    stock.query("set enable_seqscan = off").unwrap();
    assert_eq!(
        stock
            .value("select filler from kept where n = 5100")
            .unwrap(),
        "alone"
    );
    stock
        .query("insert into kept values (6000, 'stock'); checkpoint")
        .unwrap();
    drop(stock);
    native.stop().unwrap();

    // The merge took nothing from the sleeper: its session goes on in its transaction.
    client.query("commit").unwrap();
    assert_eq!(
        client
            .value("select filler from kept where n = 6000")
            .unwrap(),
        "never committed"
    );
}

/// A restore that was cut short, or a slip of the hand, left an empty folder: the database came up as a new one.
#[test]
fn a_database_whose_layer_was_emptied_is_not_taken_for_a_new_one() {
    let Some((mut server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    let target = created.target().unwrap();
    created.connect().unwrap().query("create table kept as select 42 as n").unwrap();
    server.rest.suspend(id).unwrap();
    let folder = server.home.join("databases").join(id);
    let (layer, aside) = (folder.join("layer"), server.home.join("aside"));
    // With its snapshot, whose memory the files no longer fit, and without.
    for has_snapshot in [true, false] {
        server.stop();
        fs::rename(&layer, &aside).unwrap();
        fs::create_dir(&layer).unwrap();
        assert!(folder.join("snapshot").exists());
        if !has_snapshot {
            fs::remove_file(folder.join("snapshot")).unwrap();
        }
        server.run();
        let error = Client::connect(&target).err().unwrap().to_string();
        assert!(error.contains("its files are gone"), "{error}");
        assert_eq!(server.rest.database(id).unwrap().state, "error");
        let events = server.rest.call("GET", &format!("/v1/databases/{id}/events"), "").unwrap();
        let events: serde_json::Value = serde_json::from_slice(&events.body).unwrap();
        let newest = &events["events"][0];
        assert_eq!(newest["kind"], "wake_failed", "{events}");
        assert!(newest["message"].as_str().unwrap().contains("its files are gone"), "{events}");
        fs::remove_dir_all(&layer).unwrap();
        fs::rename(&aside, &layer).unwrap();
        let mut client = harness::connect_again(&target);
        assert_eq!(client.value("select n from kept").unwrap(), "42");
        drop(client);
        server.rest.suspend(id).unwrap();
    }
}
