//! What the run found, and how it is printed.

use serde::Serialize;

use super::{MIB, Plan};
use crate::stats::Summary;

pub const CREATE: &str = "create, one after another";
pub const CREATES: &str = "create, many clients at once";
pub const GET: &str = "get";
pub const LIST: &str = "list, first 100";
pub const TENANT_LIST: &str = "list of a tenant, first 100";
pub const PAGES: &str = "list of all, pages of 1,000";
pub const IMAGES: &str = "images, with counts";
pub const WAKE_FRESH: &str = "never used: new connection to first row";
pub const WAKE_USED: &str = "used: new connection to first row";
pub const WAKE_PACKED: &str = "packed: new connection to first row";
pub const WAKE_NEW: &str = "made in this life of the server: new connection to first row";
pub const KINDS: [&str; 11] = [
    CREATE,
    CREATES,
    GET,
    LIST,
    TENANT_LIST,
    PAGES,
    IMAGES,
    WAKE_FRESH,
    WAKE_USED,
    WAKE_PACKED,
    WAKE_NEW,
];

/// What was measured with so many databases.
#[derive(Debug, Serialize)]
pub struct Step {
    pub databases: u64,
    /// Of them, those that have been used and sleep.
    pub used: usize,
    /// Copies of others that were used and packed.
    pub packed: usize,
    /// How the last of them were made.
    pub filled: &'static str,
    pub creates_a_second: f64,
    pub deletes_a_second: f64,
    pub timings: Vec<(&'static str, Summary)>,
    pub start_ms: f64,
    /// Of the server, after all that.
    pub resident_bytes: u64,
    pub anonymous_bytes: u64,
    pub metadata_bytes: u64,
    /// On disk, of each one that was used and sleeps.
    pub used_bytes: u64,
    /// And of each that is packed.
    pub packed_bytes: u64,
}

impl Step {
    pub fn timing(&self, what: &str) -> Option<&Summary> {
        self.timings
            .iter()
            .find(|(name, _)| *name == what)
            .map(|(_, summary)| summary)
    }
}

/// What the server's memory grew by while it made databases.
#[derive(Debug, Serialize)]
pub struct Growth {
    pub databases: u64,
    pub resident_bytes: i64,
    pub anonymous_bytes: i64,
}

#[derive(Debug, Serialize)]
pub struct Scale {
    #[serde(flatten)]
    pub plan: Plan,
    pub steps: Vec<Step>,
    pub growth: Vec<Growth>,
}

/// 300000 as "300 k".
pub fn short(databases: u64) -> String {
    match databases {
        n if n >= 1_000_000 && n.is_multiple_of(100_000) => format!("{} M", n as f64 / 1e6),
        n if n >= 1_000 && n.is_multiple_of(100) => format!("{} k", n as f64 / 1e3),
        n => n.to_string(),
    }
}

/// "p50 / p99".
pub fn millis(summary: &Summary) -> String {
    format!("{:.2} / {:.2}", summary.p50_ms, summary.p99_ms)
}

/// A row of the table: what it is, and its cell of a step, given the first one.
type Row = (String, Box<dyn Fn(&Step, &Step) -> String>);

fn rows() -> Vec<Row> {
    let row = |what: &str, cell: fn(&Step) -> String| -> Row {
        (what.into(), Box::new(move |step, _| cell(step)))
    };
    let none = || "–".to_owned();
    let mib = |bytes: u64| (bytes as f64 / MIB as f64).round().to_string();
    let mut rows = vec![
        row("of them used and asleep", |step| step.used.to_string()),
        row("of them copies of used, packed ones", |step| step.packed.to_string()),
        row("filled", |step| step.filled.to_owned()),
    ];
    for kind in KINDS {
        let cell = move |step: &Step, _: &Step| step.timing(kind).map_or_else(none, millis);
        rows.push((format!("{kind}, p50 / p99 ms"), Box::new(cell)));
    }
    for kind in [CREATE, WAKE_USED, WAKE_PACKED] {
        let cell = move |step: &Step, first: &Step| match (step.timing(kind), first.timing(kind)) {
            (Some(now), Some(first)) => format!("{:.2}", now.p99_ms / first.p99_ms),
            _ => none(),
        };
        rows.push((format!("{kind}, p99 against the first"), Box::new(cell)));
    }
    rows.extend([
        row("creates a second, sustained", |step| {
            format!("{:.0}", step.creates_a_second)
        }),
        row("deletes a second, of those never used", |step| {
            format!("{:.0}", step.deletes_a_second)
        }),
        row("start of the server, ms", |step| {
            format!("{:.0}", step.start_ms)
        }),
        row("disk of each used one, KiB", |step| {
            (step.used_bytes >> 10).to_string()
        }),
        row("disk of each packed one, KiB", |step| {
            (step.packed_bytes >> 10).to_string()
        }),
    ]);
    type Size = (&'static str, fn(&Step) -> u64);
    let sizes: [Size; 3] = [
        ("memory of the server, resident, MiB", |step| step.resident_bytes),
        ("of it no file's, MiB", |step| step.anonymous_bytes),
        ("metadata on disk, MiB", |step| step.metadata_bytes),
    ];
    for (what, bytes) in sizes {
        rows.push((what.into(), Box::new(move |step, _| mib(bytes(step)))));
    }
    rows
}

/// Tells all of the last step, a line for each row of the table.
pub fn tell(steps: &[Step], say: &dyn Fn(String)) {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
        return;
    };
    say(format!("{} databases:", short(last.databases)));
    for (what, cell) in rows() {
        say(format!("  {what}: {}", cell(last, first)));
    }
}

impl Scale {
    /// As a table of Markdown.
    pub fn print(&self) {
        let print = |what: &str, cells: Vec<String>| println!("| {what} | {} |", cells.join(" | "));
        let steps = &self.steps;
        let heads = steps.iter().map(|step| short(step.databases));
        print("databases", heads.collect());
        println!("|---|{}", "---|".repeat(steps.len()));
        for (what, cell) in rows() {
            print(
                &what,
                steps.iter().map(|step| cell(step, &steps[0])).collect(),
            );
        }
        if let [first, .., last] = steps.as_slice() {
            let each = |bytes: fn(&Step) -> u64| {
                (bytes(last) as f64 - bytes(first) as f64)
                    / (last.databases as f64 - first.databases as f64)
            };
            println!(
                "with {} databases the server has {:.0} bytes for each more than with {}, resident; {:.0} of them no file's",
                short(last.databases),
                each(|step| step.resident_bytes),
                short(first.databases),
                each(|step| step.anonymous_bytes)
            );
        }
        for Growth {
            databases,
            resident_bytes,
            anonymous_bytes,
        } in &self.growth
        {
            let each = |bytes: i64| bytes as f64 / *databases as f64;
            println!(
                "while it made {databases} databases, the server grew by {:.0} bytes each, resident; {:.0} of them no file's",
                each(*resident_bytes),
                each(*anonymous_bytes)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plot;
    use super::*;
    use std::time::Duration;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [100, 1_000, 1_500, 300_000, 1_000_000].map(short),
            ["100", "1 k", "1.5 k", "300 k", "1 M"]
        );
    }

    #[test]
    fn every_step_is_a_point_of_the_picture() {
        let step = |databases| Step {
            databases,
            used: 1,
            packed: 1,
            filled: "in bulk",
            creates_a_second: 500.0,
            deletes_a_second: 1.0,
            timings: vec![(CREATE, Summary::of(&[Duration::from_millis(2)]).unwrap())],
            start_ms: 20.0,
            resident_bytes: 1,
            anonymous_bytes: 1,
            metadata_bytes: 1,
            used_bytes: 1,
            packed_bytes: 1,
        };
        let svg = plot::draw(&[step(100), step(1_000), step(1_000_000)]);
        let line = svg
            .lines()
            .find(|line| line.contains("#b45309") && line.starts_with("<path"))
            .unwrap();
        assert_eq!(line.matches('L').count() + 1, 3);
        assert!(svg.contains(">1 M<") && svg.contains(">databases<"));
    }
}
