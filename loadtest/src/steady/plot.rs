//! The samples over time, as an SVG picture without scripts or fonts of its own.

use std::fmt::Write;

use super::Sample;

const WIDTH: f64 = 800.0;
const PANEL: f64 = 150.0;
const GAP: f64 = 46.0;
/// Room for the numbers of an axis.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;

struct Panel {
    title: &'static str,
    lines: Vec<Line>,
}

struct Line {
    name: &'static str,
    colour: &'static str,
    /// Minute and value.
    points: Vec<(f64, f64)>,
}

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
    let height = GAP + panels.len() as f64 * (PANEL + GAP) + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut top = GAP;
    for panel in &panels {
        panel.draw(&mut svg, top, minutes);
        top += PANEL + GAP;
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#444\">minutes</text>\n</svg>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        height - 8.0
    );
    svg
}

impl Panel {
    fn draw(&self, svg: &mut String, top: f64, minutes: f64) {
        let most = self
            .lines
            .iter()
            .flat_map(|line| &line.points)
            .fold(0.0, |most: f64, (_, value)| most.max(*value));
        let step = step(most / 4.0);
        let full = (most / step).ceil().max(1.0) * step;
        let x =
            |minute: f64| LEFT + (WIDTH - LEFT - RIGHT) * minute / minutes.max(f64::MIN_POSITIVE);
        let y = |value: f64| top + PANEL * (1.0 - value / full);
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"#111\" font-weight=\"bold\">{}</text>",
            top - 10.0,
            self.title
        );
        for tick in ticks(full, step) {
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" \
                 fill=\"#444\">{tick}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y(tick) + 4.0,
                at = y(tick)
            );
        }
        for tick in ticks(minutes, self::step(minutes / 8.0)) {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{tick}</text>",
                x(tick),
                top + PANEL + 15.0
            );
        }
        let mut label = WIDTH - RIGHT;
        for Line {
            name,
            colour,
            points,
        } in self.lines.iter().rev()
        {
            let path: Vec<_> = points
                .iter()
                .map(|(minute, value)| format!("{:.1} {:.1}", x(*minute), y(*value)))
                .collect();
            if !path.is_empty() {
                let _ = writeln!(
                    svg,
                    "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
                    path.join("L")
                );
            }
            let _ = writeln!(
                svg,
                "<text x=\"{label:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{colour}\">{name}</text>",
                top - 10.0
            );
            label -= 9.0 + 7.0 * name.len() as f64;
        }
    }
}

/// The least of 1, 2, 5, 10, … (and of tenths for what is small) that is not below `least`.
fn step(least: f64) -> f64 {
    let mut power = 0.1;
    loop {
        for factor in [1.0, 2.0, 5.0] {
            if power * factor >= least {
                return power * factor;
            }
        }
        power *= 10.0;
    }
}

fn ticks(full: f64, step: f64) -> impl Iterator<Item = f64> {
    let count = (full / step + 1e-9).floor() as u32;
    // Rounded, so that 3 × 0.1 is written 0.3.
    (0..=count).map(move |n| (f64::from(n) * step * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        assert_eq!(
            [step(0.0), step(0.3), step(7.0), step(260.0)],
            [0.1, 0.5, 10.0, 500.0]
        );
        assert_eq!(ticks(0.5, 0.1).collect::<Vec<_>>().len(), 6);
    }

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
