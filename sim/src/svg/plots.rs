//! The comparison's plots: panels by workload, a colour by policy.

use super::{Anchor, Drawing, figure};
use crate::suite::{Loads, Outcome};

/// Goodput as a share of the fluid bound: a panel per workload, a bar per policy.
pub fn goodput(outcomes: &[Outcome]) -> String {
    let panels = panels(outcomes, |outcome| outcome.workload);
    let names = names(outcomes, |outcome| outcome.name);
    let bars = names.len().max(1) as f64;
    let size = (PANEL_WIDTH, 44.0 + bars * BAR);
    let mut drawing =
        Drawing::new(GOODPUT_COLUMNS as f64 * size.0 + 20.0, 50.0 + rows(panels.len(), GOODPUT_COLUMNS) * size.1);
    drawing.text((16.0, 26.0), 15.0, Anchor::Start, "Goodput as a share of the fluid bound (the line)");
    let most = outcomes.iter().map(|outcome| outcome.share).fold(1.0, f64::max) * 1.02;
    for (index, panel) in panels.iter().enumerate() {
        let (left, top) = corner(index, GOODPUT_COLUMNS, size);
        let (left, chart) = (left + NAME_WIDTH, PANEL_WIDTH - NAME_WIDTH - 60.0);
        drawing.text((left, top + 14.0), 13.0, Anchor::Start, panel[0].workload);
        let bound = left + chart / most;
        for (bar, outcome) in panel.iter().enumerate() {
            let y = top + 22.0 + bar as f64 * BAR;
            let (colour, _) = style(&names, outcome.name);
            drawing.text((left - 6.0, y + BAR - 5.0), 11.0, Anchor::End, outcome.name);
            drawing.rect((left, y), (outcome.share / most * chart, BAR - 3.0), colour);
            let value = format!("{:.3}", outcome.share);
            drawing.text((left + chart + 6.0, y + BAR - 5.0), 11.0, Anchor::Start, &value);
        }
        drawing.line((bound, top + 18.0), (bound, top + 22.0 + panel.len() as f64 * BAR), "#111111");
    }
    drawing.finish()
}

/// Bad rates over the load: a panel per workload, a line per policy.
pub fn loads(loads: &[Loads]) -> String {
    let panels = panels(loads, |loads| loads.workload);
    let names = names(loads, |loads| loads.name);
    let size = (420.0, 300.0);
    let bottom = 50.0 + rows(panels.len(), LOADS_COLUMNS) * size.1;
    let mut drawing = Drawing::new(LOADS_COLUMNS as f64 * size.0 + 20.0, bottom + 40.0);
    let title = "Requests dropped or late, over the load as a share of the fluid bound";
    drawing.text((16.0, 26.0), 15.0, Anchor::Start, title);
    let points = || loads.iter().flat_map(|loads| &loads.points);
    let least = points().map(|point| point.factor).fold(f64::MAX, f64::min);
    let most = points().map(|point| point.factor).fold(0.0, f64::max);
    for (index, panel) in panels.iter().enumerate() {
        let (left, top) = corner(index, LOADS_COLUMNS, size);
        let (left, top) = (left + 56.0, top + 24.0);
        let (width, height) = (size.0 - 80.0, size.1 - 80.0);
        let x = |factor: f64| left + (factor - least) / (most - least).max(1e-9) * width;
        let y = |bad_rate: f64| top + (1.0 - bad_rate) * height;
        drawing.text((left, top - 8.0), 13.0, Anchor::Start, panel[0].workload);
        for percent in [0, 20, 40, 60, 80, 100] {
            let y = y(f64::from(percent) / 100.0);
            drawing.line((left, y), (left + width, y), "#dddddd");
            drawing.text((left - 6.0, y + 4.0), 11.0, Anchor::End, &format!("{percent} %"));
        }
        for tenth in (0..=30).step_by(2).map(f64::from).filter(|tenth| (least..=most).contains(&(tenth / 10.0))) {
            let x = x(tenth / 10.0);
            drawing.line((x, top), (x, top + height), "#dddddd");
            drawing.text((x, top + height + 16.0), 11.0, Anchor::Middle, &figure(tenth / 10.0));
        }
        for loads in panel.iter() {
            let (colour, dashes) = style(&names, loads.name);
            let points: Vec<(f64, f64)> = loads.points.iter().map(|p| (x(p.factor), y(p.bad_rate))).collect();
            drawing.polyline(&points, colour, dashes);
        }
    }
    for (index, name) in names.iter().enumerate() {
        let (x, y) = (60.0 + index as f64 * 110.0, bottom + 10.0);
        let (colour, dashes) = style(&names, name);
        drawing.polyline(&[(x, y - 4.0), (x + 24.0, y - 4.0)], colour, dashes);
        drawing.text((x + 30.0, y), 12.0, Anchor::Start, name);
    }
    drawing.finish()
}

/// What belongs to each workload, in order.
fn panels<T>(all: &[T], workload: impl Fn(&T) -> &'static str) -> Vec<&[T]> {
    all.chunk_by(|a, b| workload(a) == workload(b)).collect()
}

fn names<T>(all: &[T], name: impl Fn(&T) -> &'static str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for name in all.iter().map(name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn rows(panels: usize, columns: usize) -> f64 {
    panels.div_ceil(columns) as f64
}

fn corner(index: usize, columns: usize, (width, height): (f64, f64)) -> (f64, f64) {
    (10.0 + (index % columns) as f64 * width, 40.0 + (index / columns) as f64 * height)
}

/// The colour and dashes of a policy's line. The colours can be told apart by the colour-blind; from the ninth policy on
/// dashes tell.
fn style(names: &[&str], name: &str) -> (&'static str, &'static str) {
    let index = names.iter().position(|known| *known == name).unwrap_or(0);
    (COLOURS[index % COLOURS.len()], if index < COLOURS.len() { "" } else { "6 3" })
}

const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#666666", "#9467bd"];
const GOODPUT_COLUMNS: usize = 4;
const LOADS_COLUMNS: usize = 3;
const PANEL_WIDTH: f64 = 320.0;
/// Of the longest name of a policy.
const NAME_WIDTH: f64 = 84.0;
const BAR: f64 = 15.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::Load;
    use crate::svg::tests::check;

    #[test]
    fn every_workload_has_its_panel_and_every_policy_its_bar() {
        let outcome = |workload, name, share| Outcome {
            workload,
            policy: String::new(),
            name,
            shares: vec![share],
            share,
            published: share,
            goodput: 1.0,
        };
        let outcomes = [
            outcome("a", "rota", 0.9),
            outcome("a", "nexus", 0.0),
            outcome("b", "rota", 1.1),
            outcome("b", "nexus", 0.5),
        ];
        let svg = goodput(&outcomes);
        let elements = check(&svg);
        assert_eq!(elements.iter().filter(|name| *name == "rect").count(), 1 + 4);
        assert!(svg.contains(">0.900<") && svg.contains(">b<"), "{svg}");
        check(&goodput(&[]));
    }

    #[test]
    fn lines_stay_inside_their_panel() {
        let point = |factor, bad_rate| Load { factor, bad_rate, worst_bad_rate: 1.0, p99_ms: 1.0 };
        let lines = ["rota", "nexus"].map(|name| Loads {
            workload: "a",
            policy: String::new(),
            name,
            points: vec![point(0.2, 0.0), point(1.5, 1.0)],
        });
        let svg = loads(&lines);
        assert_eq!(check(&svg).iter().filter(|name| *name == "polyline").count(), 4);
        assert!(svg.contains("points=\"66.00,284.00 406.00,64.00\""), "{svg}");
        check(&loads(&[]));
    }
}
