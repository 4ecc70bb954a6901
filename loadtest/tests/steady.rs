//! The long run's command, seconds long: what it looks at is there, and it says so when a criterion is not met.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Server, text};

#[test]
fn steady_judges_a_run_by_what_it_saw() {
    if !harness::have_kvm() {
        return;
    }
    let server = Server::start();
    let (json, svg) = (
        server.home.join("steady.json"),
        server.home.join("steady.svg"),
    );
    let mut command = server.loadtest(&json);
    command.args([
        "steady",
        "--plan",
        "free",
        "--minutes",
        "0.2",
        "--interval",
        "2",
    ]);
    command.args(["--scale", "1", "--svg"]).arg(&svg);
    let output = command.output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(
        &std::fs::read(&json).unwrap_or_else(|_| panic!("{}", text(&output.stderr))),
    )
    .unwrap();
    assert!(report["samples"].as_array().unwrap().len() >= 4);
    assert!(report["upkeep"]["wal_bytes"].as_u64().unwrap() > 0);
    let verdicts = report["verdicts"].as_array().unwrap();
    let passed = |what: &str| {
        let verdict = verdicts
            .iter()
            .find(|verdict| verdict["what"] == what)
            .unwrap();
        verdict["passed"].as_bool().unwrap()
    };
    assert!(passed("every transaction was committed"), "{report}");
    assert!(passed("pg_amcheck is clean"), "{report}");
    assert!(passed("balances agree"), "{report}");
    // Too short for autovacuum, which looks once a minute: the run as a whole must say that it did not pass.
    let all = verdicts.iter().all(|verdict| verdict["passed"] == true);
    assert_eq!(output.status.success(), all, "{}", text(&output.stderr));
    assert!(
        std::fs::read_to_string(&svg)
            .unwrap()
            .contains("transactions a second")
    );
}
