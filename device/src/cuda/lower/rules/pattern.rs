//! The launches of what was written as many nodes.

use crate::cuda::lower::LowerError;
use crate::cuda::lower::builder::{Builder, Operand};
use crate::cuda::lower::patterns::{Kind, Pattern};
use crate::cuda::lower::view::View;
use rota_graph::ValueId;
use rota_kernels::Pointer;
use rota_kernels::attention::{Attention, Heads, Mask};
use rota_kernels::normalize::{Affine, Normalize};

pub fn pattern(b: &mut Builder, pattern: &Pattern) -> Result<(), LowerError> {
    match pattern.kind {
        Kind::Normalize { x, epsilon, gamma, beta } => normalize(b, pattern.output, x, epsilon, [gamma, beta]),
        Kind::Attention { q, k, v, mask, scale } => attention(b, pattern.output, [q, k, v], mask, scale),
    }
}

fn normalize(
    b: &mut Builder,
    output: ValueId,
    x: ValueId,
    epsilon: f32,
    parameters: [Option<ValueId>; 2],
) -> Result<(), LowerError> {
    let x = b.operand(x)?;
    let x = b.floats_of(&x)?;
    let columns = x.dims().last().copied().unwrap_or(1);
    let mut pointers = [Pointer::NONE; 2];
    for (pointer, value) in pointers.iter_mut().zip(parameters) {
        if let Some(value) = value {
            let operand = b.operand(value)?;
            *pointer = b.floats_of(&operand)?.pointer();
        }
    }
    let y = b.scratch(b.float(), x.dims());
    b.set(output, y.clone());
    if y.view.elements() == 0 {
        return Ok(());
    }
    let normalize = Normalize {
        dtype: b.storage(),
        rows: b.count(x.view.elements() / columns)?,
        columns: b.count(columns)?,
        affine: Affine::PerColumn,
        epsilon,
        root_mean_square: false,
        x: x.pointer(),
        residual: Pointer::NONE,
        gamma: pointers[0],
        beta: pointers[1],
        y: y.pointer(),
    };
    b.push(normalize.launch())
}

fn attention(
    b: &mut Builder,
    output: ValueId,
    [q, k, v]: [ValueId; 3],
    mask: Option<ValueId>,
    scale: f32,
) -> Result<(), LowerError> {
    // The kernel reads rows of k, the product columns of it.
    let k = b.operand(k)?;
    let rank = k.view.dims.len();
    let mut turned = k.view.clone();
    turned.dims.swap(rank - 2, rank - 1);
    turned.strides.swap(rank - 2, rank - 1);
    let k = rows(b, &Operand { view: turned, ..k })?;
    let (q, v) = (b.operand(q)?, b.operand(v)?);
    let (q, v) = (rows(b, &q)?, rows(b, &v)?);
    let [outers, heads, rows, size] = wide(&q.view).dims[..] else { return Err(b.refuse("has heads of another rank")) };
    let (columns, v_size) = (k.dims()[rank - 2], v.dims()[rank - 1]);
    let dims: Vec<u64> = q.dims()[..rank - 1].iter().copied().chain([v_size]).collect();
    let mask = match mask {
        Some(mask) => {
            let operand = b.operand(mask)?;
            let operand = b.converted_view(&operand, b.float())?;
            let view = operand.view.broadcast(&[outers, heads, rows, columns]);
            let view = view.ok_or_else(|| b.refuse("adds a mask that does not fit"))?;
            let strides = [0, 1, 2, 3].map(|axis| view.strides[axis] as u64);
            Mask { pointer: operand.pointer(), strides }
        }
        None => Mask { pointer: Pointer::NONE, strides: [0; 4] },
    };
    let y = b.scratch(b.float(), &dims);
    b.set(output, y.clone());
    if y.view.elements() == 0 {
        return Ok(());
    }
    let attention = Attention {
        dtype: b.storage(),
        outers: b.count(outers)?,
        heads: b.count(heads)?,
        rows: b.count(rows)?,
        columns: b.count(columns)?,
        size: b.count(size)?,
        v_size: b.count(v_size)?,
        scale,
        causal: false,
        q: strided(&q),
        k: strided(&k),
        v: strided(&v),
        y: strided(&y),
        mask,
    };
    b.push(attention.launch())
}

/// An operand whose last axis lies side by side.
fn rows(b: &mut Builder, operand: &Operand) -> Result<Operand, LowerError> {
    let operand = b.converted_view(operand, b.float())?;
    let sound = operand.view.strides.last() == Some(&1) && operand.view.strides.iter().all(|&stride| stride >= 0);
    if sound { Ok(operand) } else { b.dense(&operand) }
}

/// With an outer axis, if it has none.
fn wide(view: &View) -> View {
    let mut view = view.clone();
    while view.dims.len() < 4 {
        view.dims.insert(0, 1);
        view.strides.insert(0, 0);
    }
    view
}

fn strided(operand: &Operand) -> Heads {
    let view = wide(&operand.view);
    Heads { pointer: operand.pointer(), strides: [0, 1, 2].map(|axis| view.strides[axis] as u64) }
}
