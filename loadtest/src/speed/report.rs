//! What `speed` tells: the table, and the same as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::sides::{Route, Setting, Share};
use super::work::Work;
use super::{Plan, Run};
use crate::stats::median;

#[derive(Debug, Serialize)]
pub struct Pair {
    pub dormouse: Run,
    /// Pinned to one CPU, through PgBouncer.
    pub native: Run,
    pub ratio: f64,
}

#[derive(Debug, Serialize)]
pub struct Beside {
    pub route: Route,
    pub run: Run,
}

impl Pair {
    /// The first share of a side is that of PostgreSQL itself.
    fn cpu_ratio(&self) -> f64 {
        let first = |run: &Run| {
            run.cpu
                .first()
                .map_or(f64::NAN, |share| share.user_us + share.system_us)
        };
        first(&self.native) / first(&self.dormouse)
    }
}

/// One work, on both sides.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub work: Work,
    /// Of `figure`: `tps` or `seconds`.
    pub unit: &'static str,
    pub median_dormouse: f64,
    pub median_native: f64,
    pub median_ratio: f64,
    /// CPU time of PostgreSQL's processes over that of the vCPU's thread, for the same work: the ratio of two
    /// servers that keep their one CPU busy, whatever else the machine does.
    pub median_cpu_ratio: f64,
    pub pairs: Vec<Pair>,
    pub beside: Vec<Beside>,
}

#[derive(Debug, Serialize)]
pub struct Speed {
    #[serde(flatten)]
    pub plan: Plan,
    /// Beyond PostgreSQL's defaults, on both sides.
    pub settings: Vec<Setting>,
    /// Size of the scanned table.
    pub table_bytes: u64,
    pub comparisons: Vec<Comparison>,
}

impl Comparison {
    pub fn new(work: Work, pairs: Vec<Pair>, beside: Vec<Beside>) -> Self {
        let of = |what: fn(&Pair) -> f64| {
            median(&pairs.iter().map(what).collect::<Vec<_>>()).unwrap_or(f64::NAN)
        };
        Self {
            work,
            unit: if work.counts_transactions() {
                "tps"
            } else {
                "seconds"
            },
            median_dormouse: of(|pair| pair.dormouse.figure),
            median_native: of(|pair| pair.native.figure),
            median_ratio: of(|pair| pair.ratio),
            median_cpu_ratio: of(Pair::cpu_ratio),
            pairs,
            beside,
        }
    }

    /// The middle pair by its ratio: its costs are those that are printed.
    fn middle(&self) -> Option<&Pair> {
        self.pairs
            .iter()
            .find(|pair| pair.ratio.total_cmp(&self.median_ratio).is_eq())
    }

    fn print(&self) {
        let ratios: Vec<_> = self
            .pairs
            .iter()
            .map(|pair| format!("{:.2}", pair.ratio))
            .collect();
        println!(
            "{:22} {:>11} {:>11} {:>8.3} {:>8.3}   {}",
            self.work.title(),
            self.work.show(self.median_dormouse),
            self.work.show(self.median_native),
            self.median_ratio,
            self.median_cpu_ratio,
            ratios.join(" ")
        );
    }

    fn print_beside(&self) {
        for Beside { route, run } in &self.beside {
            println!(
                "{:22} {:20} {:>11} {:>8.3}",
                self.work.title(),
                route.to_string(),
                self.work.show(run.figure),
                self.work.ratio(self.median_dormouse, run.figure)
            );
        }
    }

    fn print_costs(&self) {
        let Some(pair) = self.middle() else {
            return;
        };
        let (unit, scale) = if self.work.counts_transactions() {
            ("µs a transaction", 1.0)
        } else {
            ("ms", 1e-3)
        };
        println!("{} ({unit})", self.work.title());
        for (side, run) in [("Dormouse", &pair.dormouse), ("native", &pair.native)] {
            let parts: Vec<_> = run
                .cpu
                .iter()
                .map(|share| show_share(share, scale))
                .collect();
            println!("  {side:9} {}", parts.join(" · "));
            let exits = run.exits.as_ref().map_or(String::new(), |exits| {
                show_exits(exits, self.work.counts_transactions())
            });
            println!(
                "  {:9} {exits}others on this machine used {:.2} cores meanwhile",
                "", run.others_cores
            );
        }
    }
}

/// The sum, and those reasons that are a hundredth of it.
fn show_exits(exits: &BTreeMap<String, f64>, each: bool) -> String {
    let all: f64 = exits.values().sum();
    let digits = if each { 2 } else { 0 };
    let reasons: Vec<_> = exits
        .iter()
        .filter(|(_, count)| **count * 100.0 >= all && all > 0.0)
        .map(|(reason, count)| format!("{reason} {count:.digits$}"))
        .collect();
    let unit = if each { "exits a transaction" } else { "exits" };
    format!("{all:.digits$} {unit} ({}), ", reasons.join(", "))
}

fn show_share(share: &Share, scale: f64) -> String {
    format!(
        "{} {:.1} + {:.1}",
        share.who,
        share.user_us * scale,
        share.system_us * scale
    )
}

impl Speed {
    pub fn print(&self) {
        let Plan {
            pairs,
            clients,
            scale,
            seconds,
            warm_up,
            core,
            aggregate_rows,
            copy_mib,
            ..
        } = &self.plan;
        let settings: Vec<_> = self
            .settings
            .iter()
            .map(|setting| format!("{}={}", setting.name, setting.value))
            .collect();
        println!("settings {}", settings.join(" "));
        println!(
            "work     pgbench: scale {scale}, {clients} clients, {seconds} s a run after {warm_up} s that don't count; table \
             scanned: {} MiB; COPY: about {copy_mib} MiB; aggregate: {aggregate_rows} rows; {pairs} pairs",
            self.table_bytes >> 20
        );
        println!(
            "sides    Dormouse through its pooler; native on CPU {core} alone through PgBouncer (session mode). Both: TCP \
             on loopback, SCRAM, no TLS. The poolers, the client and Dormouse's VMM run on any CPU."
        );
        println!(
            "ratio    Dormouse's speed over native's; by CPU: CPU time of native's processes over the vCPU thread's"
        );
        println!();
        println!(
            "{:22} {:>11} {:>11} {:>8} {:>8}   ratio of each pair",
            "", "Dormouse", "native", "ratio", "by CPU"
        );
        self.comparisons.iter().for_each(Comparison::print);
        println!("\nbeside it, native otherwise, once each: figure, and Dormouse's median over it");
        self.comparisons.iter().for_each(Comparison::print_beside);
        println!("\nCPU time of the middle pair, user + system");
        self.comparisons.iter().for_each(Comparison::print_costs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(figure: f64) -> Run {
        Run {
            figure,
            cpu: Vec::new(),
            exits: None,
            others_cores: 0.0,
        }
    }

    fn compare(work: Work, figures: &[(f64, f64)]) -> Comparison {
        let pairs = figures.iter().map(|(ours, theirs)| Pair {
            dormouse: run(*ours),
            native: run(*theirs),
            ratio: work.ratio(*ours, *theirs),
        });
        Comparison::new(work, pairs.collect(), Vec::new())
    }

    #[test]
    fn a_ratio_is_of_speed_whichever_way_the_figure_counts() {
        let faster = compare(Work::Tpcb, &[(200.0, 100.0)]);
        assert_eq!(faster.median_ratio, 2.0);
        let slower = compare(Work::Scan, &[(4.0, 1.0)]);
        assert_eq!(slower.median_ratio, 0.25);
    }

    #[test]
    fn the_costs_shown_are_the_middle_pairs() {
        let comparison = compare(Work::Select, &[(90.0, 100.0), (50.0, 100.0), (70.0, 100.0)]);
        assert_eq!(comparison.middle().unwrap().dormouse.figure, 70.0);
    }
}
