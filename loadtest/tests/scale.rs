//! `dormouse-loadtest scale`, with few databases: every figure is there, and nothing is left of it.

#![allow(clippy::unwrap_used)]

mod harness;

use serde_json::Value;

#[test]
fn a_short_run_gives_every_figure_and_leaves_nothing() {
    if !harness::have_kvm() {
        return;
    }
    // Its images are used, and its home is otherwise left alone.
    let server = harness::Server::prepare();
    let (json, svg, work) = (
        server.home.join("scale.json"),
        server.home.join("scale.svg"),
        server.home.join("work"),
    );
    let output = server
        .loadtest(&json)
        .args(["scale", "--largest", "300", "--through-api", "100"])
        .args(["--used", "2", "--packed-percent", "2", "--wakes", "3", "--first-wakes", "2"])
        .args(["--calls", "5", "--sustain", "1"])
        .arg("--program")
        .arg(harness::dormouse())
        .arg("--work")
        .arg(&work)
        .arg("--svg")
        .arg(&svg)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let steps = report["steps"].as_array().unwrap();
    let sizes: Vec<_> = steps.iter().map(|step| &step["databases"]).collect();
    assert_eq!(sizes, [100, 300]);
    let filled: Vec<_> = steps.iter().map(|step| &step["filled"]).collect();
    assert_eq!(filled, ["through the API", "in bulk"]);
    let packed: Vec<_> = steps.iter().map(|step| &step["packed"]).collect();
    assert_eq!(packed, [2, 6]);
    for step in steps {
        // Of those packed, too: each was checked to have gone on from its packed file, with its rows.
        assert_eq!(step["timings"].as_array().unwrap().len(), 11, "{step}");
        assert_eq!(step["used"], 2);
        let [packed, used] = ["packed_bytes", "used_bytes"].map(|name| step[name].as_u64().unwrap());
        assert!(packed > 64 << 10 && packed < used / 3, "{step}");
        assert!(step["creates_a_second"].as_f64().unwrap() > 0.0);
    }
    assert!(text.contains("creates a second, sustained"), "{text}");
    assert!(svg.is_file());
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
}
