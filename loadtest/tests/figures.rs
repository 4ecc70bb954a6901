//! `dormouse-loadtest wake` and `footprint`, with few samples: every figure is there.

#![allow(clippy::unwrap_used)]

mod harness;

use serde_json::Value;

fn report(server: &harness::Server, arguments: &[&str]) -> Value {
    let json = server.home.join("figures.json");
    let output = server.loadtest(&json).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{errors}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap()
}

#[test]
fn wakes_and_footprints_have_all_their_figures() {
    if !harness::have_kvm() {
        return;
    }
    let server = harness::Server::start();
    // Without native PostgreSQL, and without dropping the page cache of who runs this.
    let wakes = report(
        &server,
        &[
            "wake",
            "--databases",
            "2",
            "--samples",
            "4",
            "--slow-samples",
            "1",
            "--native-samples",
            "0",
            "--keep-page-cache",
        ],
    );
    let timings = wakes["timings"].as_array().unwrap();
    let samples = |what: &str| -> u64 {
        let found = timings.iter().filter(|timing| timing["what"].as_str().unwrap().starts_with(what));
        found.map(|timing| timing["samples"].as_u64().unwrap()).sum()
    };
    assert_eq!(samples("asleep, query on a held connection"), 4);
    assert_eq!(samples("asleep, new connection (TLS, SCRAM)"), 4);
    assert_eq!(samples("packed, query on a held connection"), 1);
    assert_eq!(samples("told to sleep a moment ago"), 4);
    assert_eq!((samples("cold, after a clean suspend"), samples("cold, after a kill")), (1, 1));
    assert_eq!(samples("POST /v1/databases"), 2);
    assert!(wakes["held_trace"].as_array().unwrap().len() > 10);

    let weighed = report(&server, &["footprint", "--databases", "1", "--awake", "1"]);
    let [fresh, used, packed] = weighed["footprints"].as_array().unwrap().as_slice() else {
        panic!("{weighed}");
    };
    assert_eq!(fresh["p50_bytes"], 0);
    assert!(used["p50_bytes"].as_u64().unwrap() > 100 << 10, "a schema and a snapshot: {weighed}");
    let packed = packed["p50_bytes"].as_u64().unwrap();
    assert!(100 << 10 < packed && packed < 512 << 10, "{weighed}");
    assert!(weighed["awake"]["p50_pss_bytes"].as_u64().unwrap() > 1 << 20, "{weighed}");
}
