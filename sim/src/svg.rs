//! Pictures as SVG text: a few shapes on a white ground, so that they read the same in dark viewers.
//!
//! No drawing library: what is drawn here are rectangles, lines and words, and the only one that is widely used has had no
//! release since 2024.

mod plots;
mod timetable;

pub use plots::{goodput, loads};
pub use timetable::{Label, timetable};

use std::fmt::Write;

/// Shapes in the order in which they were drawn. Lengths are in pixels, y grows downwards.
struct Drawing {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text's x lies.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

impl Drawing {
    fn new(width: f64, height: f64) -> Drawing {
        Drawing { width, height, body: String::new() }
    }

    fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str) {
        self.line_of(format_args!(
            r#"<rect x="{x:.2}" y="{y:.2}" width="{:.2}" height="{:.2}" fill="{fill}"/>"#,
            width.max(0.0),
            height.max(0.0)
        ));
    }

    /// A rectangle with a thin dark border, and what a viewer shows when it is pointed at.
    fn block(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str, title: &str) {
        self.line_of(format_args!(
            r##"<rect x="{x:.2}" y="{y:.2}" width="{:.2}" height="{height:.2}" fill="{fill}" stroke="#333333" stroke-width="0.5"><title>{}</title></rect>"##,
            width.max(0.0),
            escaped(title)
        ));
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str) {
        self.line_of(format_args!(
            r#"<line x1="{:.2}" y1="{:.2}" x2="{:.2}" y2="{:.2}" stroke="{stroke}"/>"#,
            from.0, from.1, to.0, to.1
        ));
    }

    fn polyline(&mut self, points: &[(f64, f64)], stroke: &str, dashes: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.2},{y:.2}")).collect();
        let points = points.join(" ");
        self.line_of(format_args!(
            r#"<polyline points="{points}" fill="none" stroke="{stroke}" stroke-width="2" stroke-dasharray="{dashes}"/>"#
        ));
    }

    fn text(&mut self, (x, y): (f64, f64), size: f64, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.line_of(format_args!(
            r##"<text x="{x:.2}" y="{y:.2}" font-size="{size}" text-anchor="{anchor}" fill="#111111">{}</text>"##,
            escaped(text)
        ));
    }

    fn finish(self) -> String {
        let Drawing { width, height, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" font-family=\"sans-serif\">\n\
             <rect width=\"{width:.0}\" height=\"{height:.0}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }

    fn line_of(&mut self, shape: std::fmt::Arguments<'_>) {
        writeln!(self.body, "{shape}").expect("a String takes everything");
    }
}

/// 1, 2 or 5 times a power of ten, so that at most `steps` of it reach `most`.
pub fn tick(most: f64, steps: f64) -> f64 {
    let least = (most / steps).max(1e-9);
    let power = libm::pow(10.0, libm::log10(least).floor());
    [1.0, 2.0, 5.0].map(|factor| factor * power).into_iter().find(|step| *step >= least).unwrap_or(10.0 * power)
}

/// A figure with at most three digits behind the point, and no zeros there.
fn figure(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// At most `most` characters.
fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// Text as it may stand between tags or in an attribute.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML has no way to write these.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
