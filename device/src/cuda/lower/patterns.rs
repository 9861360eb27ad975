//! What exporters write as many nodes and one kernel does: layer normalisation and attention.
//!
//! A pattern is taken only where nobody else reads what lies inside of it, so nothing is computed twice.

use super::evaluate::number;
use super::groups::{OUTSIDE, Readers};
use super::{Flat, Site};
use rota_graph::{NodeId, Source, ValueId};
use rota_kernels::attention::HEAD_MAX;

/// Nodes that are one launch, in place of the last of them.
pub struct Pattern {
    pub members: Vec<NodeId>,
    /// The value that the last of them makes.
    pub output: ValueId,
    pub kind: Kind,
}

pub enum Kind {
    /// (x - mean) / sqrt(variance + epsilon) * gamma + beta, over the last axis.
    Normalize { x: ValueId, epsilon: f32, gamma: Option<ValueId>, beta: Option<ValueId> },
    /// softmax(scale q k + mask) v; `k` as the product takes it: [.., size, columns].
    Attention { q: ValueId, k: ValueId, v: ValueId, mask: Option<ValueId>, scale: f32 },
}

/// Finds them, none of which share a node.
pub(super) fn find(flat: &Flat, readers: &Readers) -> Vec<Pattern> {
    let mut found: Vec<Pattern> = Vec::new();
    for id in flat.graph.node_ids() {
        let seeker = Seeker { flat, readers };
        let pattern = match flat.graph.node(id).operator.as_str() {
            "Div" => seeker.normalize(id),
            "MatMul" => seeker.attention(id),
            _ => None,
        };
        found.extend(
            pattern.filter(|new| found.iter().all(|old| !old.members.iter().any(|id| new.members.contains(id)))),
        );
    }
    found
}

struct Seeker<'a> {
    flat: &'a Flat,
    readers: &'a Readers,
}

impl Seeker<'_> {
    fn input(&self, id: NodeId, at: usize) -> Option<ValueId> {
        self.flat.graph.node(id).input(at)
    }

    /// The node of one of `operators` that makes a value which only `of` read.
    fn maker(&self, value: ValueId, operators: &[&str], of: &[NodeId]) -> Option<NodeId> {
        let Source::Node { node, .. } = self.flat.graph.value(value).source else { return None };
        let mine = self.readers[value.0 as usize].iter().all(|reader| of.contains(reader));
        let named = self.flat.graph.node(node);
        (mine && named.domain.is_empty() && operators.contains(&named.operator.as_str())).then_some(node)
    }

    /// The one node that reads a value, if it is one of `operator`.
    fn reader(&self, value: ValueId, operator: &str) -> Option<NodeId> {
        let readers = &self.readers[value.0 as usize];
        let only = *readers.first().filter(|&&reader| readers.len() == 1 && reader != OUTSIDE)?;
        (self.flat.graph.node(only).operator == operator).then_some(only)
    }

    fn number(&self, value: ValueId) -> Option<f32> {
        self.flat.graph.constant(value).and_then(number).map(|number| number as f32)
    }

    fn sizes(&self, value: ValueId) -> Option<Vec<u64>> {
        self.flat.inferred.value(value).sizes()
    }

    /// Of two inputs the one that is a number, and the other.
    fn scaled(&self, id: NodeId) -> Option<(ValueId, f32)> {
        let (a, b) = (self.input(id, 0)?, self.input(id, 1)?);
        self.number(b).map(|number| (a, number)).or_else(|| Some((b, self.number(a)?)))
    }

    /// Whether a node is the mean over the last axis, which it keeps.
    fn is_mean(&self, id: NodeId) -> bool {
        let site = Site::new(self.flat, id);
        let Ok(rank) = site.dims(0).map(|dims| dims.len() as i64) else { return false };
        let axes = site.integers("axes", 1).ok().flatten();
        let last = axes.is_some_and(|axes| axes == [-1] || axes == [rank - 1]);
        last && site.node.int("keepdims").unwrap_or(1) != 0
    }

    fn normalize(&self, div: NodeId) -> Option<Pattern> {
        let (centred, spread) = (self.input(div, 0)?, self.input(div, 1)?);
        let sqrt = self.maker(spread, &["Sqrt"], &[div])?;
        let add = self.maker(self.input(sqrt, 0)?, &["Add"], &[sqrt])?;
        let (variance, epsilon) = self.scaled(add)?;
        let mean_of_squares = self.maker(variance, &["ReduceMean"], &[add]).filter(|&id| self.is_mean(id))?;
        let square = self.maker(self.input(mean_of_squares, 0)?, &["Pow", "Mul"], &[mean_of_squares])?;
        let squares = match self.flat.graph.node(square).operator.as_str() {
            "Pow" => self.input(square, 0)? == centred && self.number(self.input(square, 1)?)? == 2.0,
            _ => self.input(square, 0)? == centred && self.input(square, 1)? == centred,
        };
        let sub = self.maker(centred, &["Sub"], &[square, div]).filter(|_| squares)?;
        let x = self.input(sub, 0)?;
        let mean = self.maker(self.input(sub, 1)?, &["ReduceMean"], &[sub]).filter(|&id| self.is_mean(id))?;
        if self.input(mean, 0)? != x {
            return None;
        }
        let mut members = vec![mean, sub, square, mean_of_squares, add, sqrt, div];
        let mut output = self.flat.graph.node(div).output(0)?;
        let columns = *self.sizes(x)?.last()?;
        let (gamma, beta) = (
            self.affine("Mul", columns, &mut output, &mut members),
            self.affine("Add", columns, &mut output, &mut members),
        );
        Some(Pattern { members, output, kind: Kind::Normalize { x, epsilon, gamma, beta } })
    }

    /// A weight for each column that is applied to `output` next, if there is one; that is the output then.
    fn affine(&self, operator: &str, columns: u64, output: &mut ValueId, members: &mut Vec<NodeId>) -> Option<ValueId> {
        let next = self.reader(*output, operator)?;
        let (a, b) = (self.input(next, 0)?, self.input(next, 1)?);
        let weight = if a == *output { b } else { a };
        let fits = self.flat.graph.constant(weight).is_some_and(|tensor| tensor.dims == [columns]) && a != b;
        let made = self.flat.graph.node(next).output(0).filter(|_| fits)?;
        members.push(next);
        *output = made;
        Some(weight)
    }

    fn attention(&self, product: NodeId) -> Option<Pattern> {
        let softmax = self.maker(self.input(product, 0)?, &["Softmax"], &[product])?;
        let mut scores = self.input(softmax, 0)?;
        let site = Site::new(self.flat, softmax);
        let rank = self.sizes(scores)?.len();
        let axis = site.axis(site.node.int("axis").unwrap_or(if site.opset < 13 { 1 } else { -1 }), rank).ok()?;
        if axis + 1 != rank || !(3..=4).contains(&rank) {
            return None;
        }
        let (mut members, mut reader) = (vec![softmax, product], softmax);
        let (mut mask, mut scale) = (None, 1.0);
        if let Some(add) = self.maker(scores, &["Add"], &[reader]) {
            let (a, b) = (self.input(add, 0)?, self.input(add, 1)?);
            let scored = |value: ValueId| self.maker(value, &["MatMul", "Mul", "Div"], &[add]).is_some();
            let (inner, added) = if scored(a) { (a, b) } else { (b, a) };
            (mask, scores, reader) = (Some(added), inner, add);
            members.insert(0, add);
        }
        if let Some(by) = self.maker(scores, &["Mul", "Div"], &[reader]) {
            let (inner, factor) = self.scaled(by)?;
            let divides = self.flat.graph.node(by).operator == "Div";
            if divides && self.input(by, 0)? != inner {
                return None;
            }
            (scores, scale, reader) = (inner, if divides { 1.0 / factor } else { factor }, by);
            members.insert(0, by);
        }
        let first = self.maker(scores, &["MatMul"], &[reader])?;
        members.insert(0, first);
        let (q, k, v) = (self.input(first, 0)?, self.input(first, 1)?, self.input(product, 1)?);
        let [q_dims, k_dims, v_dims] = [self.sizes(q)?, self.sizes(k)?, self.sizes(v)?];
        // No operand is broadcast, and a head fits the kernel.
        let outer = |dims: &[u64]| dims.get(..rank - 2).map(<[u64]>::to_vec);
        let alike = [&q_dims, &k_dims, &v_dims].iter().all(|dims| dims.len() == rank && outer(dims) == outer(&q_dims));
        let narrow = q_dims.last()? <= &u64::from(HEAD_MAX) && v_dims.last()? <= &u64::from(HEAD_MAX);
        let output = self.flat.graph.node(product).output(0)?;
        (alike && narrow).then_some(Pattern { members, output, kind: Kind::Attention { q, k, v, mask, scale } })
    }
}
