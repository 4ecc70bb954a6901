//! The benchmark does what it says it does. How fast anything is, is no test's business.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Server, succeed};

#[test]
fn speed_runs_the_same_work_on_both_sides() {
    if !harness::have_kvm() {
        return;
    }
    let server = Server::start();
    let json = server.home.join("speed.json");
    let mut command = server.loadtest(&json);
    command.args(["speed", "--quick", "--plan", "free"]);
    let printed = succeed(command.output().unwrap());
    for part in [
        "shared_buffers=",
        "by CPU",
        "vCPU thread",
        "unpinned, direct",
    ] {
        assert!(printed.contains(part), "no {part:?} in {printed}");
    }
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let comparisons = report["comparisons"].as_array().unwrap();
    assert_eq!(comparisons.len(), 7);
    for comparison in comparisons {
        let work = &comparison["work"];
        assert!(
            comparison["median_dormouse"].as_f64().unwrap() > 0.0,
            "{work}"
        );
        assert!(
            comparison["median_native"].as_f64().unwrap() > 0.0,
            "{work}"
        );
        assert_eq!(comparison["beside"].as_array().unwrap().len(), 3, "{work}");
    }
    assert!(report["table_bytes"].as_u64().unwrap() > 15 << 20);
}
