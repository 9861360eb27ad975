//! Fused expressions, and steps of recurrent layers.

use super::{sum_tolerance, tolerance_of};
use crate::gpu::Failure;
use crate::gpu::case::{Case, Maker, Planned, Scale, Tensor, Tolerance, Variant};
use rota_kernels::elementwise::Domain;
use rota_kernels::{Cell, Elementwise, Input, Math, Op, Pointer, RecurrentStep, Source, Step, Type};
use serde_json::json;

pub fn planned(scale: Scale) -> Vec<Planned> {
    let mut all = Vec::new();
    for dtype in [Type::F32, Type::F16] {
        all.push(Planned::new(Math::F32, move |maker| affine_swish(maker, dtype, scale)));
    }
    all.push(Planned::new(Math::F32, move |maker| whole(maker, scale)));
    for kind in [Kind::Lstm, Kind::GruLinear, Kind::Gru, Kind::Rnn] {
        let (batch, hidden) = scale.pick((32, 128), (3, 33));
        all.push(Planned::new(Math::F32, move |maker| recurrent(maker, kind, batch, hidden)));
    }
    all
}

/// swish(x * scale[c] + shift[c]) + residual, of pictures.
fn affine_swish(maker: &mut Maker, dtype: Type, scale: Scale) -> Result<Case, Failure> {
    let [images, channels, pixels]: [u64; 3] = scale.pick([8, 144, 56 * 56], [2, 3, 35]);
    let count = images * channels * pixels;
    let (x, residual) = (maker.tensor(count, dtype)?, maker.tensor(count, dtype)?);
    let (factor, shift) = (maker.tensor(channels, dtype)?, maker.tensor(channels, dtype)?);
    let output = maker.output(count, dtype)?;
    let whole = |tensor: &Tensor| Input {
        pointer: tensor.pointer,
        dtype,
        strides: vec![(channels * pixels) as u32, pixels as u32, 1],
    };
    let channel = |tensor: &Tensor| Input { pointer: tensor.pointer, dtype, strides: vec![0, 1, 0] };
    let expression = Elementwise {
        domain: Domain::F32,
        dims: [images, channels, pixels].map(|dim| dim as u32).to_vec(),
        output: output.pointer,
        output_type: dtype,
        inputs: vec![whole(&x), channel(&factor), channel(&shift), whole(&residual)],
        steps: vec![
            Step::load(Source::Input(0)),
            Step::three(Op::MulAdd, Source::Input(1), Source::Input(2)),
            Step::one(Op::Swish),
            Step::two(Op::Add, Source::Input(3)),
        ],
    };
    let launch = expression.launch()?;
    let expected = move |index: usize| {
        let channel = index / pixels as usize % channels as usize;
        let [x, factor, shift, residual] =
            [x.values[index], factor.values[channel], shift.values[channel], residual.values[index]].map(f64::from);
        let y = x * factor + shift;
        y / (1.0 + (-y).exp()) + residual
    };
    let torch = if dtype == Type::F16 { "f16" } else { "f32" };
    Ok(Case {
        family: "elementwise",
        what: format!("{torch} {images}x{channels}x{pixels}, affine swish residual"),
        math: Math::F32,
        variants: Variant::mark(vec![launch.clone()], &launch),
        output,
        expected: Box::new(expected),
        work: 10,
        tolerance: Tolerance::stored(dtype, tolerance_of(dtype)),
        peer: Some(json!({ "op": "affine_swish", "dtype": torch, "dims": [images, channels, pixels] })),
    })
}

/// clip(3 x + 1, 20, 200) of whole numbers.
fn whole(maker: &mut Maker, scale: Scale) -> Result<Case, Failure> {
    let count = scale.pick(1 << 22, 77);
    let (x, pointer) = maker.whole(count, 100, Type::I64)?;
    let output = maker.output(count, Type::I64)?;
    let expression = Elementwise {
        domain: Domain::I64,
        dims: vec![count as u32],
        output: output.pointer,
        output_type: Type::I64,
        inputs: vec![Input { pointer, dtype: Type::I64, strides: vec![1] }],
        steps: vec![
            Step::load(Source::Input(0)),
            Step::three(Op::MulAdd, Source::I64(3), Source::I64(1)),
            Step::three(Op::Clip, Source::I64(20), Source::I64(200)),
        ],
    };
    let launch = expression.launch()?;
    Ok(Case {
        family: "elementwise",
        what: format!("i64 {count}, multiply add clip"),
        math: Math::F32,
        variants: Variant::mark(vec![launch.clone()], &launch),
        output,
        expected: Box::new(move |index| f64::from(3 * x[index] + 1).clamp(20.0, 200.0)),
        work: 3,
        tolerance: Tolerance::EXACT,
        peer: None,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Lstm,
    GruLinear,
    Gru,
    Rnn,
}

/// One step for all items.
fn recurrent(maker: &mut Maker, kind: Kind, batch: u64, hidden: u64) -> Result<Case, Failure> {
    let (gates, label) = match kind {
        Kind::Lstm => (4, "LSTM"),
        Kind::GruLinear => (3, "GRU, linear before reset"),
        Kind::Gru => (3, "GRU"),
        Kind::Rnn => (1, "RNN"),
    };
    let mut tensor = |count: u64| maker.tensor(count, Type::F32);
    let (input, weights) = (tensor(batch * gates * hidden)?, tensor(gates * hidden * hidden)?);
    let (state, cell, bias) = (tensor(batch * hidden)?, tensor(batch * hidden)?, tensor(hidden)?);
    let output = maker.output(batch * hidden, Type::F32)?;
    let mut scratch = || maker.scratch(4 * batch * hidden);
    let step = RecurrentStep {
        cell: match kind {
            Kind::Lstm => Cell::Lstm { cell_in: cell.pointer, cell_out: scratch()?, peepholes: Pointer::NONE },
            Kind::GruLinear => Cell::GruLinearBeforeReset { bias: bias.pointer },
            Kind::Gru => Cell::Gru { scratch: [scratch()?, scratch()?] },
            Kind::Rnn => Cell::Rnn,
        },
        batch: batch as u32,
        hidden: hidden as u32,
        step: 0,
        gates: input.pointer,
        gates_row: (gates * hidden) as u32,
        weights: weights.pointer,
        hidden_in: state.pointer,
        hidden_out: output.pointer,
        lengths: Pointer::NONE,
        output: Pointer::NONE,
    };
    let chosen = step.launches()?;
    let mut variants = Vec::new();
    for &block in chosen[0].kernel.blocks {
        let launches = step.launches_with(block)?;
        variants.push(Variant { chosen: launches == chosen, launches });
    }
    let reference =
        Reference { kind, hidden: hidden as usize, gates: gates as usize, input, weights, state, cell, bias };
    let values: Vec<f64> = (0..batch as usize).flat_map(|item| reference.next(item)).collect();
    Ok(Case {
        family: "recurrent",
        what: format!("{label} step, {batch} items of {hidden}"),
        math: Math::F32,
        variants,
        output,
        expected: Box::new(move |index| values[index]),
        work: 1,
        tolerance: Tolerance::stored(Type::F32, sum_tolerance(hidden)),
        peer: None,
    })
}

/// ONNX's formulas.
struct Reference {
    kind: Kind,
    hidden: usize,
    gates: usize,
    input: Tensor,
    weights: Tensor,
    state: Tensor,
    cell: Tensor,
    bias: Tensor,
}

impl Reference {
    /// The item's new state.
    fn next(&self, item: usize) -> Vec<f64> {
        let size = self.hidden;
        let number = |tensor: &Tensor, at: usize| f64::from(tensor.values[at]);
        let before: Vec<f64> = (0..size).map(|unit| number(&self.state, item * size + unit)).collect();
        let input = |gate: usize, unit: usize| number(&self.input, (item * self.gates + gate) * size + unit);
        let recur = |gate: usize, unit: usize, state: &[f64]| -> f64 {
            (0..size).map(|k| number(&self.weights, (gate * size + unit) * size + k) * state[k]).sum()
        };
        let sum = |gate: usize, unit: usize| input(gate, unit) + recur(gate, unit, &before);
        let reset: Vec<f64> = match self.kind {
            Kind::Gru => (0..size).map(|unit| sigmoid(sum(1, unit)) * before[unit]).collect(),
            _ => Vec::new(),
        };
        let unit = |unit: usize| match self.kind {
            Kind::Rnn => sum(0, unit).tanh(),
            Kind::Lstm => {
                let cell = sigmoid(sum(2, unit)) * number(&self.cell, item * size + unit)
                    + sigmoid(sum(0, unit)) * sum(3, unit).tanh();
                sigmoid(sum(1, unit)) * cell.tanh()
            }
            Kind::Gru | Kind::GruLinear => {
                let update = sigmoid(sum(0, unit));
                let fresh = match self.kind {
                    Kind::Gru => input(2, unit) + recur(2, unit, &reset),
                    _ => input(2, unit) + sigmoid(sum(1, unit)) * (recur(2, unit, &before) + number(&self.bias, unit)),
                };
                (1.0 - update) * fresh.tanh() + update * before[unit]
            }
        };
        (0..size).map(unit).collect()
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
