//! Recurrent layers: the input's part of all gates of all steps in one product, then one launch per step.

use super::count;
use crate::cuda::lower::builder::{Builder, Operand};
use crate::cuda::lower::epilogue::Finish;
use crate::cuda::lower::evaluate::floats;
use crate::cuda::lower::{LowerError, Site};
use rota_graph::{DType, ValueId};
use rota_kernels::dtype::Math;
use rota_kernels::recurrent::{Cell, RecurrentStep};
use rota_kernels::{Epilogue, Gemm, Matrix, Pointer};

/// Sizes of a layer.
struct Layer {
    steps: u64,
    batch: u64,
    inputs: u64,
    hidden: u64,
    gates: u64,
    directions: u64,
}

pub fn recurrent(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    check(site)?;
    let x = b.operand(site.input(0)?)?;
    let x = b.converted(&x, DType::F32)?;
    let &[steps, batch, inputs] = x.dims() else { return Err(site.refuse("takes a sequence of batches of rows")) };
    let (w, r) = (site.dims(1)?, site.dims(2)?);
    let gates = match site.node.operator.as_str() {
        "LSTM" => 4,
        "GRU" => 3,
        _ => 1,
    };
    let (&[directions, rows, _], Some(&hidden)) = (&w[..], r.last()) else {
        return Err(site.refuse("has weights of another rank"));
    };
    if rows != gates * hidden || w[2] != inputs {
        return Err(site.refuse(format!("has weights {w:?} for {hidden} units and {inputs} inputs")));
    }
    let layer = Layer { steps, batch, inputs, hidden, gates, directions };
    let state = [directions, batch, hidden];
    let y = match site.node.output(0) {
        Some(_) => Some(b.result_of(site, 0, &[steps, directions, batch, hidden])?),
        None => None,
    };
    let last = match site.node.output(1) {
        Some(_) => b.result_of(site, 1, &state)?,
        None => b.scratch(DType::F32, &state),
    };
    let last_cell = match site.node.output(2) {
        Some(_) => b.result_of(site, 2, &state)?,
        None => b.scratch(DType::F32, &state),
    };
    for direction in 0..directions {
        run(b, site, &layer, &x, direction, y.as_ref(), &last, &last_cell)?;
    }
    Ok(())
}

/// What the kernels do not do.
fn check(site: &Site) -> Result<(), LowerError> {
    if site.flag("layout") || site.node.float("clip").is_some() || site.flag("input_forget") {
        return Err(site.refuse("has layout, clip or input_forget, which are not supported"));
    }
    if let Some(rota_graph::Attribute::Strings(names)) = site.node.attributes.get("activations") {
        let usual: &[&[u8]] = match site.node.operator.as_str() {
            "LSTM" => &[b"sigmoid", b"tanh", b"tanh"],
            "GRU" => &[b"sigmoid", b"tanh"],
            _ => &[b"tanh"],
        };
        if names.iter().enumerate().any(|(at, name)| !name.eq_ignore_ascii_case(usual[at % usual.len()])) {
            return Err(site.refuse("has activations other than the usual ones, which are not supported"));
        }
    }
    if site.node.input(4).is_some() {
        return Err(site.refuse("takes the lengths of its sequences, which is not supported"));
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the layer's tensors, each once")]
fn run(
    b: &mut Builder,
    site: &Site,
    layer: &Layer,
    x: &Operand,
    direction: u64,
    y: Option<&Operand>,
    last: &Operand,
    last_cell: &Operand,
) -> Result<(), LowerError> {
    let Layer { steps, batch, inputs, hidden, gates, directions } = *layer;
    let backwards = runs_backwards(site, direction);
    let (weights, recurrence) = (b.operand(site.input(1)?)?, b.operand(site.input(2)?)?);
    let (weights, recurrence) = (b.converted(&weights, DType::F32)?, b.converted(&recurrence, DType::F32)?);
    let linear = site.flag("linear_before_reset");
    let (bias, hidden_bias) = biases(b, site, layer, direction, linear)?;
    let all = b.scratch(DType::F32, &[steps, batch, gates * hidden]);
    let columns = count(site, gates * hidden)?;
    let (rows, depth) = (count(site, steps * batch)?, count(site, inputs)?);
    let epilogue = Epilogue { bias, bias_column: 1, ..Epilogue::default() };
    // States are kept in f32: what is rounded at every step adds up.
    let math = if b.math() == Math::Tf32 { Math::Tf32 } else { Math::F32 };
    let a = Matrix::row_major(x.pointer(), depth);
    let w = Matrix::transposed(at(&weights, direction * gates * hidden * inputs), depth);
    let c = Matrix::row_major(all.pointer(), columns);
    let gemm = Gemm { math, rows, columns, depth, batches: [1, 1], a, b: w, c, epilogue };
    b.product(|multiprocessors, room| gemm.launches_on(multiprocessors, room))?;

    let state_of = direction * batch * hidden;
    let mut state = [optional(b, site, 5, state_of)?, Pointer::NONE];
    let mut peepholes = Pointer::NONE;
    if gates == 4 {
        state[1] = optional(b, site, 6, state_of)?;
        peepholes = optional(b, site, 7, direction * 3 * hidden)?;
    }
    let between: [[Operand; 2]; 2] = [(); 2].map(|()| [(); 2].map(|()| b.scratch(DType::F32, &[batch, hidden])));
    for step in 0..steps {
        let place = if backwards { steps - 1 - step } else { step };
        let ends = step + 1 == steps;
        let to = |which: usize, end: &Operand| match ends {
            true => at(end, direction * batch * hidden),
            false => between[which][(step % 2) as usize].pointer(),
        };
        let (hidden_out, cell_out) = (to(0, last), to(1, last_cell));
        let cell = match gates {
            4 => Cell::Lstm { cell_in: state[1], cell_out, peepholes },
            3 if linear => Cell::GruLinearBeforeReset { bias: hidden_bias },
            3 => Cell::Gru { scratch: [between[1][0].pointer(), between[1][1].pointer()] },
            _ => Cell::Rnn,
        };
        let recurrent = RecurrentStep {
            cell,
            batch: count(site, batch)?,
            hidden: count(site, hidden)?,
            step: count(site, step)?,
            gates: at(&all, place * batch * gates * hidden),
            gates_row: columns,
            weights: at(&recurrence, direction * gates * hidden * hidden),
            hidden_in: state[0],
            hidden_out,
            lengths: Pointer::NONE,
            output: y.map_or(Pointer::NONE, |y| at(y, (place * directions + direction) * batch * hidden)),
        };
        let launches = recurrent.launches().map_err(|unfit| site.refuse(unfit.to_string()))?;
        for launch in launches {
            b.push(Ok(launch))?;
        }
        state = [hidden_out, cell_out];
    }
    Ok(())
}

fn runs_backwards(site: &Site, direction: u64) -> bool {
    match site.node.string("direction").unwrap_or("forward") {
        "reverse" => true,
        "bidirectional" => direction == 1,
        _ => false,
    }
}

fn at(operand: &Operand, elements: u64) -> Pointer {
    Pointer(operand.pointer().0 + 4 * elements)
}

/// Element `elements` of input `input`, which may be left out.
fn optional(b: &mut Builder, site: &Site, input: usize, elements: u64) -> Result<Pointer, LowerError> {
    let Some(value) = site.node.input(input) else { return Ok(Pointer::NONE) };
    let operand = b.operand(value)?;
    let operand = b.converted(&operand, DType::F32)?;
    Ok(at(&operand, elements))
}

/// What is added to the input's part of the gates, and what is added to the recurrent part of a GRU's new state alone.
fn biases(
    b: &mut Builder,
    site: &Site,
    layer: &Layer,
    direction: u64,
    linear: bool,
) -> Result<(Pointer, Pointer), LowerError> {
    if site.node.input(3).is_none() {
        return Ok((Pointer::NONE, Pointer::NONE));
    }
    let all =
        site.constant(3).and_then(floats).ok_or_else(|| site.refuse("has biases that are only known when it runs"))?;
    let each = (layer.gates * layer.hidden) as usize;
    let own = all.get(2 * each * direction as usize..2 * each * (direction as usize + 1));
    let own = own.ok_or_else(|| site.refuse("has too few biases"))?;
    // The last of a GRU's gates keeps its recurrent bias apart when that is inside of what the reset gate scales.
    let apart = if layer.gates == 3 && linear { 2 * layer.hidden as usize } else { each };
    let sum: Vec<f32> = (0..each).map(|at| own[at] + if at < apart { own[each + at] } else { 0.0 }).collect();
    let sum = b.exact(&[each as u64], &sum).pointer();
    let hidden = match apart < each {
        true => b.exact(&[layer.hidden], &own[each + apart..]).pointer(),
        false => Pointer::NONE,
    };
    Ok((sum, hidden))
}
