//! The steps over the number of databases, as a picture.

use super::report::{self, Step, short};
use crate::plot::{self, Axis, Line, Panel};

/// Panels with a common logarithmic axis.
pub fn draw(steps: &[Step]) -> String {
    let at = |step: &Step| (step.databases as f64).log10();
    let line = |name, colour, value: &dyn Fn(&Step) -> Option<f64>| Line {
        name,
        colour,
        points: steps
            .iter()
            .filter_map(|step| Some((at(step), value(step)?)))
            .collect(),
    };
    let p99 = |what: &'static str| move |step: &Step| step.timing(what).map(|timing| timing.p99_ms);
    let p50 = |what: &'static str| move |step: &Step| step.timing(what).map(|timing| timing.p50_ms);
    let mib = |bytes: u64| Some(bytes as f64 / f64::from(1 << 20));
    let panels = [
        Panel {
            title: "POST /v1/databases, one after another, ms",
            lines: vec![
                line("p50", "#2563eb", &p50(report::CREATE)),
                line("p99", "#b45309", &p99(report::CREATE)),
            ],
        },
        Panel {
            title: "creates a second, many clients",
            lines: vec![line("sustained", "#2563eb", &|step| {
                Some(step.creates_a_second)
            })],
        },
        Panel {
            title: "p99, ms",
            lines: vec![
                line("GET of one", "#2563eb", &p99(report::GET)),
                line("first page", "#15803d", &p99(report::LIST)),
                line(
                    "a tenant's first page",
                    "#b45309",
                    &p99(report::TENANT_LIST),
                ),
            ],
        },
        Panel {
            title: "new connection to first row, p99, ms",
            lines: vec![
                line("never used", "#2563eb", &p99(report::WAKE_FRESH)),
                line("used", "#15803d", &p99(report::WAKE_USED)),
                line("packed", "#7c3aed", &p99(report::WAKE_PACKED)),
                line("made in this life", "#b45309", &p99(report::WAKE_NEW)),
            ],
        },
        Panel {
            title: "MiB",
            lines: vec![
                line("server, resident", "#2563eb", &|step| {
                    mib(step.resident_bytes)
                }),
                line("metadata on disk", "#7c3aed", &|step| {
                    mib(step.metadata_bytes)
                }),
            ],
        },
        Panel {
            title: "start of the server, ms",
            lines: vec![line("to its first answer", "#2563eb", &|step| {
                Some(step.start_ms)
            })],
        },
    ];
    let ticks: Vec<_> = steps
        .iter()
        .map(|step| (at(step), short(step.databases)))
        .collect();
    let axis = Axis {
        label: "databases",
        from: ticks.first().map_or(0.0, |(at, _)| *at),
        to: ticks.last().map_or(1.0, |(at, _)| *at),
        ticks,
    };
    plot::draw(&panels, &axis)
}
