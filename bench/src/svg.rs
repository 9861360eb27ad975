//! A latency plot as an SVG file: percentiles along a logarithmic axis in nines, so that the tail is as wide as the rest.

use crate::table::figure;
use rota_sim::svg::{escaped, tick};
use std::fmt::Write;

/// One line of a plot.
#[derive(Clone, Debug)]
pub struct Curve {
    pub name: String,
    /// (nines, milliseconds): the median is 0.3 nines, 90 % one, 99 % two. In rising order.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const LEGEND_LINE: f64 = 18.0;
/// An axis reaches so far at least.
const LEAST_MS: f64 = 1e-5;
/// Readable on white, and told apart by the colour-blind.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// The plot of `curves`, each from 0 % to its last percentile.
pub fn percentile_plot(title: &str, curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let nines = points().map(|point| point.0).fold(1.0, f64::max).ceil();
    let step = tick(points().map(|point| point.1).fold(LEAST_MS, f64::max), 10.0);
    let most_ms = (points().map(|point| point.1).fold(0.0, f64::max) / step).ceil().max(1.0) * step;
    let x = |at: f64| LEFT + at / nines * (WIDTH - LEFT - RIGHT);
    let y = |ms: f64| HEIGHT - BOTTOM - ms / most_ms * (HEIGHT - TOP - BOTTOM);

    let mut svg = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| writeln!(svg, "{text}").expect("a String takes everything");
    line(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    ));
    line(format_args!(r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>"##));
    line(format_args!(r#"<text x="{LEFT}" y="22" font-size="15">{}</text>"#, escaped(title)));
    let (bottom, right) = (y(0.0), x(nines));
    for at in 0..=nines as u32 {
        let x = x(f64::from(at));
        line(format_args!(r##"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom}" stroke="#dddddd"/>"##));
        line(format_args!(
            r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            bottom + 18.0,
            percentile(at)
        ));
    }
    for tick in 0..=(most_ms / step).round() as u32 {
        let ms = f64::from(tick) * step;
        let y = y(ms);
        line(format_args!(r##"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="#dddddd"/>"##));
        let label = figure(ms);
        let label = if label.contains('.') { label.trim_end_matches('0').trim_end_matches('.') } else { &label };
        line(format_args!(r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#, LEFT - 8.0, y + 4.0));
    }
    let middle = (LEFT + right) / 2.0;
    let foot = HEIGHT - 12.0;
    line(format_args!(r#"<text x="{middle:.1}" y="{foot}" text-anchor="middle">share of requests</text>"#));
    line(format_args!(r#"<text x="16" y="{TOP}">ms</text>"#));
    for (index, curve) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let path: Vec<String> = curve.points.iter().map(|&(at, ms)| format!("{:.1},{:.1}", x(at), y(ms))).collect();
        let path = path.join(" ");
        line(format_args!(r#"<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>"#));
        let y = TOP + 16.0 + index as f64 * LEGEND_LINE;
        let x = LEFT + 12.0;
        line(format_args!(r#"<rect x="{x}" y="{:.1}" width="14" height="4" fill="{colour}"/>"#, y - 6.0));
        line(format_args!(r#"<text x="{:.1}" y="{y:.1}">{}</text>"#, x + 20.0, escaped(&curve.name)));
    }
    line(format_args!("</svg>"));
    svg
}

/// "0 %", "90 %", "99 %", "99.9 %"
fn percentile(nines: u32) -> String {
    match nines {
        0 => "0 %".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        _ => format!("99.{} %", "9".repeat(nines as usize - 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks what a parser would: tags that nest, quoted attributes, no stray markup in text. Returns the elements' names.
    fn check(svg: &str) -> Vec<String> {
        let (mut open, mut seen) = (Vec::new(), Vec::new());
        let mut rest = svg;
        while let Some(start) = rest.find('<') {
            let text = &rest[..start];
            let entities = ["&amp;", "&lt;", "&gt;", "&quot;"];
            assert!(
                text.match_indices('&').all(|(at, _)| entities.iter().any(|e| text[at..].starts_with(e))),
                "{text}"
            );
            assert!(!text.contains('>'), "{text}");
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default().to_owned();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else {
                seen.push(name.clone());
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        seen
    }

    #[test]
    fn a_plot_is_well_formed_whatever_the_names() {
        let points = vec![(0.0, 1.0), (1.0, 2.5), (3.2, 47.0)];
        let curves = [r#"a<b & "c">"#, "d\u{1}"].map(|name| Curve { name: name.into(), points: points.clone() });
        let svg = percentile_plot("<&>", &curves);
        let elements = check(&svg);
        assert_eq!(elements.iter().filter(|name| *name == "polyline").count(), 2);
        assert!(svg.contains("a&lt;b &amp; &quot;c&quot;&gt;") && svg.contains("99.99 %") && !svg.contains('\u{1}'));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn without_answers_there_are_axes() {
        let svg = percentile_plot("nothing", &[Curve { name: "a".into(), points: Vec::new() }]);
        check(&svg);
        assert!(svg.contains("90 %") && !svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn every_point_lies_inside_the_frame() {
        let svg = percentile_plot("", &[Curve { name: String::new(), points: vec![(0.0, 0.0), (5.0, 1234.5)] }]);
        let points = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').unwrap();
            assert!((LEFT..=WIDTH - RIGHT).contains(&x.parse().unwrap()), "{point}");
            assert!((TOP..=HEIGHT - BOTTOM).contains(&y.parse().unwrap()), "{point}");
        }
    }
}
