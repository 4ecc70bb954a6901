//! The samples over time, as a picture.

use super::Sample;
use crate::plot::{self, Axis, Line, Panel};

/// Three panels, one above the other, with a common axis of time.
pub fn draw(samples: &[Sample]) -> String {
    let line = |name, colour, value: &dyn Fn(&Sample) -> Option<f64>| Line {
        name,
        colour,
        points: samples
            .iter()
            .filter_map(|sample| Some((sample.second / 60.0, value(sample)?)))
            .collect(),
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let panels = [
        Panel {
            title: "transactions a second",
            lines: vec![line("tps", "#2563eb", &|sample| Some(sample.tps))],
        },
        Panel {
            title: "the kernel's own memory, KiB",
            lines: vec![line("heap", "#b45309", &|sample| {
                Some(sample.kernel_bytes? as f64 / 1024.0)
            })],
        },
        Panel {
            title: "MiB",
            lines: vec![
                line("host memory of the VM", "#15803d", &|sample| {
                    Some(mib(sample.host_bytes))
                }),
                line("data layer on disk", "#7c3aed", &|sample| {
                    Some(mib(sample.layer_bytes))
                }),
            ],
        },
    ];
    let minutes = samples.last().map_or(1.0, |last| last.second / 60.0);
    plot::draw(&panels, &Axis::linear("minutes", minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_a_point_and_what_is_not_told_is_none() {
        let sample = |second, kernel_bytes| Sample {
            second,
            tps: 500.0,
            latency_ms: 1.0,
            kernel_bytes,
            cache_bytes: None,
            guest_bytes: None,
            host_bytes: 64 << 20,
            layer_bytes: 200 << 20,
        };
        let svg = draw(&[sample(60.0, Some(1 << 20)), sample(120.0, None)]);
        let points = |colour: &str| {
            let line = svg
                .lines()
                .find(|line| line.contains(colour) && line.starts_with("<path"))
                .unwrap();
            line.matches('L').count() + 1
        };
        assert_eq!(points("#2563eb"), 2);
        assert_eq!(points("#b45309"), 1);
        assert!(svg.ends_with("</svg>\n"));
    }
}
