//! What share of the samples was done by when, as a picture.

use std::time::Duration;

use super::{HELD, HELD_DROPPED, NATIVE, NEW, NEW_DROPPED, PACKED};
use crate::plot::{self, Axis, Line, Panel};

/// From where on time is drawn, ms as a power of two; and to where.
const SPAN: (i32, i32) = (0, 8);

fn line(series: &[(&str, Vec<Duration>)], what: &str, name: &'static str, colour: &'static str) -> Line {
    let mut sorted: Vec<Duration> =
        series.iter().filter(|(found, _)| *found == what).flat_map(|(_, sample)| sample.clone()).collect();
    sorted.sort_unstable();
    let (from, to) = (f64::from(SPAN.0), f64::from(SPAN.1));
    let count = sorted.len() as f64;
    let done = sorted.iter().enumerate().map(|(index, sample)| {
        let at = (sample.as_secs_f64() * 1e3).log2().clamp(from, to);
        (at, 100.0 * (index + 1) as f64 / count)
    });
    Line { name, colour, points: done.collect() }
}

/// Two panels over one logarithmic axis: a held connection, and a new one.
pub fn draw(series: &[(&str, Vec<Duration>)]) -> String {
    let line = |what, name, colour| line(series, what, name, colour);
    let panels = [
        Panel {
            title: "held connection: % answered",
            lines: vec![
                line(HELD, "asleep", "#2563eb"),
                line(HELD_DROPPED, "page cache dropped", "#b45309"),
                line(PACKED, "packed", "#15803d"),
                line(NATIVE, "native, from exec", "#6b7280"),
            ],
        },
        Panel {
            title: "new connection, TLS and SCRAM: % answered",
            lines: vec![line(NEW, "asleep", "#2563eb"), line(NEW_DROPPED, "page cache dropped", "#b45309")],
        },
    ];
    let ticks = (SPAN.0..=SPAN.1).map(|power| (f64::from(power), format!("{}", 1 << power))).collect();
    plot::draw(&panels, &Axis { label: "ms from the query, or the connection, to the first row", from: SPAN.0.into(), to: SPAN.1.into(), ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_is_a_step_and_none_is_left_out() {
        let series = [(HELD, [4, 2, 1000].map(Duration::from_millis).to_vec()), (NATIVE, vec![])];
        let drawn = line(&series, HELD, "asleep", "#000");
        assert_eq!(drawn.points.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1.0, 2.0, 8.0]);
        assert_eq!(drawn.points.last().unwrap().1, 100.0);
        let svg = draw(&series);
        assert!(svg.contains(">asleep<") && svg.contains(">256<"));
        assert_eq!(svg.matches("stroke-width").count(), 1, "nothing is drawn of what was not measured");
    }
}
