//! Pictures of what models share: Graphviz's text, and SVG.
//!
//! A node that several models share is drawn once; what each has of its own stands beside the others'.

use crate::hash::Hash;
use crate::index::{Group, Index, Member};
use crate::outline::{Origin, Outline};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Nodes in parts, and what goes from one to another.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// Shared parts first, then each member's own.
    parts: Vec<String>,
    boxes: Vec<Labelled>,
    edges: Vec<Edge>,
}

#[derive(Clone, Debug)]
struct Labelled {
    label: String,
    part: usize,
    /// Longest way from an input.
    layer: usize,
}

/// From box to box; boxes are listed after those that they read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    from: usize,
    to: usize,
    text: String,
}

impl Picture {
    /// All models of the index, under the names that `name` gives.
    pub fn of(index: &Index, groups: &[Group], name: &dyn Fn(Member) -> String) -> Picture {
        let mut picture = Picture::default();
        let mut part_of: BTreeMap<Member, Vec<(usize, &Group)>> = BTreeMap::new();
        picture.shared_parts(groups, name, &mut part_of);
        let mut shared: BTreeMap<(usize, Hash), usize> = BTreeMap::new();
        for member in index.members() {
            let Some(outline) = index.outline(member) else { continue };
            let own = picture.parts.len();
            picture.parts.push(name(member));
            let levels = part_of.get(&member).map_or(&[][..], Vec::as_slice);
            picture.member(outline, own, levels, &mut shared);
        }
        picture.edges.sort();
        picture.edges.dedup();
        picture
    }

    fn shared_parts<'a>(
        &mut self,
        groups: &'a [Group],
        name: &dyn Fn(Member) -> String,
        part_of: &mut BTreeMap<Member, Vec<(usize, &'a Group)>>,
    ) {
        for group in groups {
            let names: Vec<String> = group.members.iter().map(|member| name(*member)).collect();
            let part = self.parts.len();
            self.parts.push(format!("shared by {}", names.join(", ")));
            for member in &group.members {
                part_of.entry(*member).or_default().push((part, group));
            }
            self.shared_parts(&group.groups, name, part_of);
        }
    }

    fn member(
        &mut self,
        outline: &Outline,
        own: usize,
        levels: &[(usize, &Group)],
        shared: &mut BTreeMap<(usize, Hash), usize>,
    ) {
        let mut boxes = Vec::with_capacity(outline.nodes.len());
        for node in &outline.nodes {
            let part = levels.iter().find(|(_, group)| group.cut.nodes.contains(&node.hash)).map(|(part, _)| *part);
            let known = part.and_then(|part| shared.get(&(part, node.hash)).copied());
            let at = known.unwrap_or(self.boxes.len());
            if known.is_none() {
                let label = node.label.clone();
                self.boxes.push(Labelled { label, part: part.unwrap_or(own), layer: 0 });
                if let Some(part) = part {
                    shared.insert((part, node.hash), at);
                }
            }
            boxes.push(at);
            for value in node.reads.iter().map(|id| outline.value(*id)) {
                if let Origin::Node(from) = value.origin {
                    let from: usize = boxes[from.0 as usize];
                    self.boxes[at].layer = self.boxes[at].layer.max(self.boxes[from].layer + 1);
                    self.edges.push(Edge { from, to: at, text: value.text.clone() });
                }
            }
        }
    }

    /// Graphviz's text: a cluster per part.
    pub fn dot(&self) -> String {
        let mut text =
            String::from("digraph models {\n  node [shape=box, style=filled, fontname=\"sans-serif\", fontsize=10];\n");
        for (part, name) in self.parts.iter().enumerate() {
            let _ = writeln!(text, "  subgraph cluster_{part} {{\n    label=\"{}\";", quoted(name));
            for (at, labelled) in self.boxes.iter().enumerate().filter(|(_, labelled)| labelled.part == part) {
                let _ = writeln!(
                    text,
                    "    n{at} [label=\"{}\", fillcolor=\"{}\"];",
                    quoted(&labelled.label),
                    colour(part)
                );
            }
            text.push_str("  }\n");
        }
        for Edge { from, to, text: value } in &self.edges {
            let crosses = self.boxes[*from].part != self.boxes[*to].part;
            let label = if crosses { format!(" [label=\"{}\", penwidth=2]", quoted(value)) } else { String::new() };
            let _ = writeln!(text, "  n{from} -> n{to}{label};");
        }
        text.push_str("}\n");
        text
    }

    /// SVG: layers from the top down, parts side by side in their own colours; what crosses a cut is drawn strong.
    pub fn svg(&self) -> String {
        let (columns, widths) = self.columns();
        let x = |part: usize| MARGIN + widths[..part].iter().map(|&width| width as f64 * STEP_X).sum::<f64>();
        let place = |at: usize| {
            let labelled = &self.boxes[at];
            (x(labelled.part) + columns[at] as f64 * STEP_X, TOP + labelled.layer as f64 * STEP_Y)
        };
        let layers = self.boxes.iter().map(|labelled| labelled.layer + 1).max().unwrap_or(0);
        let (width, height) = (x(widths.len()) + MARGIN, TOP + layers as f64 * STEP_Y + MARGIN);
        let mut text = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" font-family="sans-serif" font-size="10"><rect width="100%" height="100%" fill="white"/>"#
        );
        text.push('\n');
        for (part, name) in self.parts.iter().enumerate().filter(|(part, _)| widths[*part] > 0) {
            let fits = (widths[part] as f64 * STEP_X / 5.5) as usize;
            let _ = writeln!(
                text,
                r#"<text x="{:.0}" y="20" font-weight="bold">{}<title>{}</title></text>"#,
                x(part),
                escaped(&shortened(name, fits)),
                escaped(name)
            );
        }
        for Edge { from, to, text: value } in &self.edges {
            let path = path(place(*from), place(*to));
            let crosses = self.boxes[*from].part != self.boxes[*to].part;
            let (colour, strength) = if crosses { ("#222222", 2.0) } else { ("#999999", 0.7) };
            let _ = writeln!(
                text,
                r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="{strength}"><title>{}</title></path>"#,
                escaped(value)
            );
        }
        for (at, labelled) in self.boxes.iter().enumerate() {
            let (x, y) = place(at);
            let _ = writeln!(
                text,
                r##"<rect x="{x:.0}" y="{y:.0}" width="{BOX_X}" height="{BOX_Y}" rx="3" fill="{}" stroke="#555555" stroke-width="0.5"><title>{}</title></rect><text x="{:.0}" y="{:.0}" text-anchor="middle">{}</text>"##,
                colour(labelled.part),
                escaped(&labelled.label),
                x + BOX_X / 2.0,
                y + 14.0,
                escaped(&shortened(&labelled.label, 24))
            );
        }
        text.push_str("</svg>\n");
        text
    }

    /// By box: its column within its part; by part: how many columns it takes.
    fn columns(&self) -> (Vec<usize>, Vec<usize>) {
        let mut used: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut widths = vec![0; self.parts.len()];
        let column = |labelled: &Labelled| {
            let next = used.entry((labelled.part, labelled.layer)).or_default();
            *next += 1;
            widths[labelled.part] = widths[labelled.part].max(*next);
            *next - 1
        };
        (self.boxes.iter().map(column).collect(), widths)
    }
}

/// Pixels.
const MARGIN: f64 = 16.0;
const TOP: f64 = 34.0;
const BOX_X: f64 = 150.0;
const BOX_Y: f64 = 20.0;
const STEP_X: f64 = 172.0;
const STEP_Y: f64 = 38.0;

/// From the bottom of one box to the top of another; past boxes in between, around their sides.
fn path((x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> String {
    if x1 == x2 && y2 - y1 > STEP_Y {
        let (x, y1, y2) = (x1 + BOX_X, y1 + BOX_Y / 2.0, y2 + BOX_Y / 2.0);
        return format!("M{x:.0},{y1:.0} C{0:.0},{y1:.0} {0:.0},{y2:.0} {x:.0},{y2:.0}", x + STEP_X - BOX_X);
    }
    let (x1, y1, x2) = (x1 + BOX_X / 2.0, y1 + BOX_Y, x2 + BOX_X / 2.0);
    let bend = STEP_Y / 2.0;
    format!("M{x1:.0},{y1:.0} C{x1:.0},{:.0} {x2:.0},{:.0} {x2:.0},{y2:.0}", y1 + bend, y2 - bend)
}

fn colour(part: usize) -> &'static str {
    const COLOURS: [&str; 8] = ["#9ecae1", "#fdd0a2", "#c7e9c0", "#dadaeb", "#fcbba1", "#d9d9d9", "#fee391", "#ccebc5"];
    COLOURS[part % COLOURS.len()]
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most.max(2)) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ")
}

fn escaped(text: &str) -> String {
    // Control characters have no place in XML, escaped or not.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, Graph, Limits, Outline, Worth, examples};

    #[test]
    fn a_shared_node_is_drawn_once_and_what_crosses_is_marked() {
        let mut index = Index::new(Worth { weight_bytes: 1, ..Worth::default() });
        for (number, file) in examples::heads(3).into_iter().enumerate() {
            let graph = Graph::read(Bytes::from(file), &Limits::default()).unwrap();
            index.add(Member(number as u32), Outline::of(&graph));
        }
        let picture = Picture::of(&index, &index.groups(), &|member| format!("model <{}>", member.0));
        let dot = picture.dot();
        assert_eq!(dot.matches("fillcolor").count(), 4 + 3);
        assert_eq!(dot.matches("penwidth=2").count(), 3);
        assert!(dot.contains("shared by model <0>, model <1>, model <2>"));
        let svg = picture.svg();
        assert_eq!(svg.matches("rx=\"3\"").count(), 4 + 3);
        assert!(svg.contains("model &lt;0&gt;") && !svg.contains("model <"));
    }
}
