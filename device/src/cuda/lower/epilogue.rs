//! Whether a group of element-wise nodes is something that a GEMM or convolution can do to each sum before it stores it.
//!
//! What is recognised, from the inside out: the sum times and plus constants by channel, plus one tensor of the same shape, one of the
//! kernels' activations, and (instead of inside) a tensor of the same shape behind that.

use super::Site;
use super::evaluate::floats;
use super::expression::{Binary, Expression, Node, Term, Unary};
use super::groups::{Group, Input};
use rota_graph::{Tensor, ValueId};
use rota_kernels::Activation;

/// Operators whose kernels have an epilogue.
pub const HOSTS: [&str; 3] = ["Conv", "Gemm", "MatMul"];

/// What a kernel does with each sum: `activation(scale[c] * sum + shift[c] + residual)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// By channel; one for all where there is one.
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    pub residual: Option<ValueId>,
    /// Whether the residual is added behind the activation.
    pub residual_last: bool,
    pub activation: Activation,
}

impl Default for Finish {
    fn default() -> Finish {
        let (scale, shift) = (vec![1.0], vec![0.0]);
        Finish { scale, shift, residual: None, residual_last: false, activation: Activation::Identity }
    }
}

/// The group as what `host`, whose output is the group's input `sum`, does with its sums.
pub fn matched(host: &Site, group: &Group, sum: usize, dims: &[u64]) -> Option<Finish> {
    let channel_axis = if host.node.operator == "Conv" { 1 } else { dims.len().checked_sub(1)? };
    let matcher = Matcher { host, group, e: &group.expression, sum, dims, channel_axis };
    let finish = matcher.whole(group.result)?;
    let scaled = finish.scale.iter().any(|&scale| scale != 1.0);
    let shifted = finish.shift.iter().any(|&shift| shift != 0.0);
    let fits = match host.node.operator.as_str() {
        // Factors go into weights and bias, which have to be known for that.
        "Conv" => {
            !(scaled || shifted)
                || (host.constant(1).is_some() && (host.node.input(2).is_none() || host.constant(2).is_some()))
        }
        // A product is scaled as a whole, and has one bias.
        _ => finish.scale.windows(2).all(|pair| pair[0] == pair[1]) && !(shifted && host.node.input(2).is_some()),
    };
    fits.then_some(finish)
}

struct Matcher<'a> {
    host: &'a Site<'a>,
    group: &'a Group,
    e: &'a Expression,
    sum: usize,
    dims: &'a [u64],
    channel_axis: usize,
}

impl Matcher<'_> {
    fn whole(&self, term: Term) -> Option<Finish> {
        self.activated(term).or_else(|| {
            self.sides(term, Binary::Add).find_map(|(inner, other)| {
                let residual = Some(self.tensor(other)?);
                let finish = self.activated(inner)?;
                let plain = finish.residual.is_none() && finish.activation != Activation::Identity;
                plain.then_some(Finish { residual, residual_last: true, ..finish })
            })
        })
    }

    fn activated(&self, term: Term) -> Option<Finish> {
        if let Some(finish) = self.added(term) {
            return Some(finish);
        }
        let (inner, activation) = activation(self.e, term)?;
        let finish = self.added(inner)?;
        Some(Finish { activation, ..finish })
    }

    fn added(&self, term: Term) -> Option<Finish> {
        self.scaled(term).or_else(|| {
            self.sides(term, Binary::Add).find_map(|(inner, other)| {
                let residual = Some(self.tensor(other)?);
                Some(Finish { residual, ..self.scaled(inner)? })
            })
        })
    }

    /// The sum times and plus constants.
    fn scaled(&self, term: Term) -> Option<Finish> {
        match self.e.node(term) {
            Node::Load(input) if usize::from(input) == self.sum => Some(Finish::default()),
            Node::Unary(Unary::Neg, inner) => self.scaled(inner).map(|f| f.times(&[-1.0])),
            Node::Binary(Binary::Add, ..) => self
                .sides(term, Binary::Add)
                .find_map(|(inner, other)| Some(self.scaled(inner)?.plus(&self.constant(other)?))),
            Node::Binary(Binary::Mul, ..) => self
                .sides(term, Binary::Mul)
                .find_map(|(inner, other)| Some(self.scaled(inner)?.times(&self.constant(other)?))),
            Node::Binary(Binary::Sub, a, b) => match self.constant(b) {
                Some(by) => Some(self.scaled(a)?.plus(&by.iter().map(|by| -by).collect::<Vec<_>>())),
                None => Some(self.scaled(b)?.times(&[-1.0]).plus(&self.constant(a)?)),
            },
            Node::Binary(Binary::Div, a, b) => {
                let by = self.constant(b)?;
                Some(self.scaled(a)?.times(&by.iter().map(|by| 1.0 / by).collect::<Vec<_>>()))
            }
            _ => None,
        }
    }

    fn sides(&self, term: Term, function: Binary) -> impl Iterator<Item = (Term, Term)> {
        sides(self.e, term, function).into_iter().flatten()
    }

    /// Constants by channel, or one for all.
    fn constant(&self, term: Term) -> Option<Vec<f32>> {
        let Node::Load(input) = self.e.node(term) else { return self.e.value(term).map(|value| vec![value]) };
        let tensor: &Tensor = match &self.group.inputs[usize::from(input)] {
            Input::Constant(tensor) => tensor,
            Input::Value(value) => self.host.flat.graph.constant(*value)?,
        };
        // Aligned from the right, only the channels' axis may be longer than 1.
        let missing = self.dims.len().checked_sub(tensor.dims.len())?;
        let other = |(axis, &dim): (usize, &u64)| axis + missing == self.channel_axis || dim == 1;
        let channels = self.dims[self.channel_axis];
        let by_channel = tensor.dims.iter().enumerate().all(other) && tensor.elements() == channels;
        by_channel.then(|| floats(tensor)).flatten()
    }

    /// A tensor as large as the output.
    fn tensor(&self, term: Term) -> Option<ValueId> {
        let Node::Load(input) = self.e.node(term) else { return None };
        let Input::Value(value) = self.group.inputs[usize::from(input)] else { return None };
        let same = usize::from(input) != self.sum && self.host.sizes(value).ok()? == self.dims;
        same.then_some(value)
    }
}

impl Finish {
    fn times(mut self, by: &[f32]) -> Finish {
        self.scale = zip(&self.scale, by, |a, b| a * b);
        self.shift = zip(&self.shift, by, |a, b| a * b);
        self
    }

    fn plus(mut self, by: &[f32]) -> Finish {
        self.shift = zip(&self.shift, by, |a, b| a + b);
        self
    }
}

fn zip(a: &[f32], b: &[f32], f: fn(f32, f32) -> f32) -> Vec<f32> {
    let longer = a.len().max(b.len());
    (0..longer).map(|at| f(a[at % a.len()], b[at % b.len()])).collect()
}

/// Both ways round: (one operand, the other) of a `function` that does not care.
fn sides(e: &Expression, term: Term, function: Binary) -> Option<[(Term, Term); 2]> {
    match e.node(term) {
        Node::Binary(found, a, b) if found == function => Some([(a, b), (b, a)]),
        _ => None,
    }
}

/// A term as one of the kernels' activations, and of what.
pub(super) fn activation(e: &Expression, term: Term) -> Option<(Term, Activation)> {
    if let Some((inner, low, high)) = clip(e, term) {
        return Some((
            inner,
            if (low, high) == (0.0, f32::INFINITY) { Activation::Relu } else { Activation::Clip { low, high } },
        ));
    }
    if let Some((x, a, b)) = gate(e, term) {
        return Some((x, Activation::HardSigmoid { a, b }));
    }
    match e.node(term) {
        Node::Unary(Unary::Sigmoid, x) => return Some((x, Activation::Sigmoid)),
        Node::Unary(Unary::Tanh, x) => return Some((x, Activation::Tanh)),
        Node::Select(negative, other, x) => return bent(e, negative, other, x),
        _ => {}
    }
    swish(e, term)
}

/// (x, low, high) of `min(max(x, low), high)`, or of one half of it.
fn clip(e: &Expression, term: Term) -> Option<(Term, f32, f32)> {
    let half = |term: Term, function: Binary| {
        sides(e, term, function)?.into_iter().find_map(|(x, by)| Some((x, e.value(by)?)))
    };
    let (inner, high) = half(term, Binary::Min).unwrap_or((term, f32::INFINITY));
    let (inner, low) = half(inner, Binary::Max).unwrap_or((inner, f32::NEG_INFINITY));
    (inner != term).then_some((inner, low, high))
}

/// (x, a, b) of `x * a + b`.
fn line(e: &Expression, term: Term) -> (Term, f32, f32) {
    let by =
        |function| sides(e, term, function).and_then(|s| s.into_iter().find_map(|(x, by)| Some((x, e.value(by)?))));
    if let Some((x, shift)) = by(Binary::Add) {
        let (x, a, b) = line(e, x);
        return (x, a, b + shift);
    }
    if let Some((x, factor)) = by(Binary::Mul) {
        let (x, a, b) = line(e, x);
        return (x, a * factor, b * factor);
    }
    match e.node(term) {
        Node::Binary(Binary::Div, x, by) if e.value(by).is_some() => {
            let by = e.value(by).unwrap_or(1.0);
            let (x, a, b) = line(e, x);
            (x, a / by, b / by)
        }
        _ => (term, 1.0, 0.0),
    }
}

/// (x, a, b) of `clip(a * x + b, 0, 1)`, also when it is written as `clip(x + 3, 0, 6) / 6`.
fn gate(e: &Expression, term: Term) -> Option<(Term, f32, f32)> {
    let (clipped, factor, shift) = line(e, term);
    let (inner, low, high) = clip(e, clipped)?;
    if shift != 0.0 || low != 0.0 || (high * factor - 1.0).abs() > 1e-6 {
        return None;
    }
    let (x, a, b) = line(e, inner);
    Some((x, a * factor, b * factor))
}

/// x times a gate on x, in the ways in which exporters write it.
fn swish(e: &Expression, term: Term) -> Option<(Term, Activation)> {
    for (x, other) in sides(e, term, Binary::Mul).into_iter().flatten() {
        if e.node(other) == Node::Unary(Unary::Sigmoid, x) {
            return Some((x, Activation::Swish));
        }
        if let Some((of, a, b)) = gate(e, other).filter(|(of, ..)| *of == x) {
            return Some((of, Activation::HardSwish { a, b }));
        }
        if let Some(x) = gelu(e, x, other) {
            return Some((x, Activation::Gelu));
        }
    }
    // (x * clip(x + 3, 0, 6)) / 6
    let (product, factor, shift) = line(e, term);
    if shift != 0.0 || product == term {
        return None;
    }
    for (x, other) in sides(e, product, Binary::Mul).into_iter().flatten() {
        let Some((inner, low, high)) = clip(e, other) else { continue };
        let (of, a, b) = line(e, inner);
        if of == x && low == 0.0 && (high * factor - 1.0).abs() < 1e-6 {
            return Some((x, Activation::HardSwish { a: a * factor, b: b * factor }));
        }
    }
    None
}

/// x, when `gate` is `0.5 * erf(x / sqrt 2) + 0.5`.
fn gelu(e: &Expression, x: Term, gate: Term) -> Option<Term> {
    let (erf, a, b) = line(e, gate);
    let Node::Unary(Unary::Erf, of) = e.node(erf) else { return None };
    let (of, slope, shift) = line(e, of);
    let near = |a: f32, b: f32| (a - b).abs() < 1e-5;
    (of == x && near(a, 0.5) && near(b, 0.5) && near(slope, std::f32::consts::FRAC_1_SQRT_2) && shift == 0.0)
        .then_some(x)
}

/// `x < 0 ? other : x`.
fn bent(e: &Expression, negative: Term, other: Term, x: Term) -> Option<(Term, Activation)> {
    let Node::Binary(Binary::Less, of, zero) = e.node(negative) else { return None };
    if of != x || e.value(zero) != Some(0.0) {
        return None;
    }
    let (inner, a, b) = line(e, other);
    if inner == x && b == 0.0 {
        return Some((x, Activation::LeakyRelu { a }));
    }
    (e.node(inner) == Node::Unary(Unary::Exp, x) && a == -b).then_some((x, Activation::Elu { a }))
}
