//! Figures over time or size, as an SVG picture without scripts or fonts of its own.

use std::fmt::Write;

const WIDTH: f64 = 800.0;
const PANEL: f64 = 150.0;
const GAP: f64 = 46.0;
/// Room for the numbers of an axis.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;

pub struct Panel {
    pub title: &'static str,
    pub lines: Vec<Line>,
}

pub struct Line {
    pub name: &'static str,
    pub colour: &'static str,
    /// Place on the common axis, and value.
    pub points: Vec<(f64, f64)>,
}

/// The axis that all panels have in common.
pub struct Axis {
    pub label: &'static str,
    pub from: f64,
    pub to: f64,
    /// Where something is written, and what.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0, with some eight round numbers.
    pub fn linear(label: &'static str, to: f64) -> Self {
        let ticks = ticks(to, step(to / 8.0));
        Self {
            label,
            from: 0.0,
            to,
            ticks: ticks.map(|tick| (tick, tick.to_string())).collect(),
        }
    }
}

/// The panels, one above the other.
pub fn draw(panels: &[Panel], axis: &Axis) -> String {
    let height = GAP + panels.len() as f64 * (PANEL + GAP) + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut top = GAP;
    for panel in panels {
        panel.draw(&mut svg, top, axis);
        top += PANEL + GAP;
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#444\">{}</text>\n</svg>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        height - 8.0,
        axis.label
    );
    svg
}

impl Panel {
    fn draw(&self, svg: &mut String, top: f64, axis: &Axis) {
        let most = self
            .lines
            .iter()
            .flat_map(|line| &line.points)
            .fold(0.0, |most: f64, (_, value)| most.max(*value));
        let step = step(most / 4.0);
        let full = (most / step).ceil().max(1.0) * step;
        let length = (axis.to - axis.from).max(f64::MIN_POSITIVE);
        let x = |at: f64| LEFT + (WIDTH - LEFT - RIGHT) * (at - axis.from) / length;
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
        for (at, name) in &axis.ticks {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{name}</text>",
                x(*at),
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
                .map(|(at, value)| format!("{:.1} {:.1}", x(*at), y(*value)))
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
}
