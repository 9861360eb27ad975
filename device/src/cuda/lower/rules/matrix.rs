//! Matrix products, and softmax.

use super::count;
use crate::cuda::lower::builder::{Builder, Operand};
use crate::cuda::lower::epilogue::Finish;
use crate::cuda::lower::{LowerError, Site};
use rota_graph::ValueId;
use rota_kernels::{Epilogue, Gemm, Matrix, Pointer, Softmax};

/// y = alpha a b + beta c, a and b perhaps transposed.
pub fn gemm(b: &mut Builder, site: &Site, finish: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    let left = b.operand(site.input(0)?)?;
    let right = b.operand(site.input(1)?)?;
    let (left, right) = (b.floats_of(&left)?, b.floats_of(&right)?);
    let (&[left_rows, left_columns], &[right_rows, right_columns]) = (left.dims(), right.dims()) else {
        return Err(site.refuse("multiplies what is no matrix"));
    };
    let (rows, depth) = if site.flag("transA") { (left_columns, left_rows) } else { (left_rows, left_columns) };
    let (right_depth, columns) =
        if site.flag("transB") { (right_columns, right_rows) } else { (right_rows, right_columns) };
    if depth != right_depth {
        return Err(site.refuse(format!("multiplies rows of {depth} with columns of {right_depth}")));
    }
    let [rows, columns, depth] = [count(site, rows)?, count(site, columns)?, count(site, depth)?];
    let matrix = |operand: &Operand, turned: bool, width: u32, height: u32| match turned {
        false => Matrix::row_major(operand.pointer(), width),
        true => Matrix::transposed(operand.pointer(), height),
    };
    let left = matrix(&left, site.flag("transA"), depth, rows);
    let right = matrix(&right, site.flag("transB"), columns, depth);
    let mut epilogue = Epilogue { scale: site.node.float("alpha").unwrap_or(1.0), ..Epilogue::default() };
    if site.node.input(2).is_some() {
        let added = b.operand(site.input(2)?)?;
        let added = b.floats_of(&added)?;
        let wide = added.view.broadcast(&[u64::from(rows), u64::from(columns)]);
        let wide = wide.ok_or_else(|| site.refuse("adds a tensor that does not fit"))?;
        epilogue.bias = added.pointer();
        epilogue.bias_scale = site.node.float("beta").unwrap_or(1.0);
        (epilogue.bias_row, epilogue.bias_column) = (wide.strides[0] as u32, wide.strides[1] as u32);
    }
    apply(b, site, finish, &mut epilogue, columns)?;
    let output = b.result(site, finish)?;
    let c = Matrix::row_major(output.pointer(), columns);
    let gemm = Gemm { math: b.math(), rows, columns, depth, batches: [1, 1], a: left, b: right, c, epilogue };
    b.product(|multiprocessors, room| gemm.launches_on(multiprocessors, room))
}

/// Products of the last two axes, for every index of those before them.
pub fn mat_mul(b: &mut Builder, site: &Site, finish: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    // Where that is known, both operands have at least an axis.
    site.output_dims(0)?;
    let left = b.operand(site.input(0)?)?;
    let right = b.operand(site.input(1)?)?;
    let (mut left, mut right) = (b.floats_of(&left)?, b.floats_of(&right)?);
    // A vector is a row on the left and a column on the right; the output then lacks that axis, which moves nothing.
    if left.dims().len() == 1 {
        left.view.dims.insert(0, 1);
        left.view.strides.insert(0, 0);
    }
    if right.dims().len() == 1 {
        right.view.dims.push(1);
        right.view.strides.push(1);
    }
    let (l, r) = (left.dims().len(), right.dims().len());
    let (mut rows, depth, columns) = (left.dims()[l - 2], left.dims()[l - 1], right.dims()[r - 1]);
    if depth != right.dims()[r - 2] {
        return Err(site.refuse(format!("multiplies rows of {depth} with columns of {}", right.dims()[r - 2])));
    }
    let rank = l.max(r);
    let mut axes = batch_axes(site, &left, &right)?;
    // One matrix on the right for all: the batch axes are more rows.
    if axes.iter().all(|axis| axis.right == 0) && left.view.is_dense() && l == rank {
        rows *= axes.iter().map(|axis| axis.size).product::<u64>();
        axes.clear();
    }
    merge(&mut axes);
    let [rows, columns, depth] = [count(site, rows)?, count(site, columns)?, count(site, depth)?];
    let mut epilogue = Epilogue::default();
    apply(b, site, finish, &mut epilogue, columns)?;
    let output = b.result(site, finish)?;
    let each = u64::from(rows) * u64::from(columns);
    // Two batch axes are the kernel's; those before them are launches.
    let inner = axes.split_off(axes.len().saturating_sub(2));
    let [first, second] = match inner[..] {
        [first, second] => [first, second],
        [second] => [Axis::NONE, second],
        _ => [Axis::NONE; 2],
    };
    let launches: u64 = axes.iter().map(|axis| axis.size).product();
    for launch in 0..launches {
        let (mut rest, mut from_left, mut from_right) = (launch, 0, 0);
        for axis in axes.iter().rev() {
            from_left += (rest % axis.size) as i64 * axis.left;
            from_right += (rest % axis.size) as i64 * axis.right;
            rest /= axis.size;
        }
        let bytes = output.element_bytes();
        let step = launch * first.size * second.size * each * bytes;
        let at = |operand: &Operand, shift: i64| Pointer(operand.pointer().0 + shift as u64 * bytes);
        let mut shifted = epilogue;
        if shifted.residual.is_some() {
            shifted.residual.0 += step;
        }
        let gemm = Gemm {
            math: b.math(),
            rows,
            columns,
            depth,
            batches: [count(site, first.size)?, count(site, second.size)?],
            a: Matrix::row_major(at(&left, from_left), depth).batched([first.left as u64, second.left as u64]),
            b: Matrix::row_major(at(&right, from_right), columns).batched([first.right as u64, second.right as u64]),
            c: Matrix::row_major(Pointer(output.pointer().0 + step), columns).batched([each * second.size, each]),
            epilogue: shifted,
        };
        b.matrix_product(&gemm)?;
    }
    Ok(())
}

/// A batch axis and how far both operands move along it, in elements.
#[derive(Clone, Copy)]
struct Axis {
    size: u64,
    left: i64,
    right: i64,
}

impl Axis {
    const NONE: Axis = Axis { size: 1, left: 0, right: 0 };
}

/// The axes before the last two, and how far each operand moves along them.
fn batch_axes(site: &Site, left: &Operand, right: &Operand) -> Result<Vec<Axis>, LowerError> {
    let (l, r) = (left.dims().len(), right.dims().len());
    let rank = l.max(r);
    let mut batch: Vec<u64> = vec![1; rank - 2];
    for (operand, own) in [(left, l), (right, r)] {
        for (axis, &dim) in operand.dims()[..own - 2].iter().enumerate() {
            let at = rank - own + axis;
            batch[at] = batch[at].max(dim);
        }
    }
    let wide = |operand: &Operand, own: usize| {
        let mut dims = batch.clone();
        dims.extend(&operand.dims()[own - 2..]);
        operand.view.broadcast(&dims).ok_or_else(|| site.refuse("has inputs that do not broadcast"))
    };
    let (left_view, right_view) = (wide(left, l)?, wide(right, r)?);
    let axis = |at: usize| Axis { size: batch[at], left: left_view.strides[at], right: right_view.strides[at] };
    Ok((0..rank - 2).filter(|&at| batch[at] > 1).map(axis).collect())
}

/// Joins neighbours that are one longer axis for both operands.
fn merge(axes: &mut Vec<Axis>) {
    let mut at = 1;
    while at < axes.len() {
        let (outer, inner) = (axes[at - 1], axes[at]);
        let joins = |outer: i64, stride: i64| outer == stride * inner.size as i64;
        if joins(outer.left, inner.left) && joins(outer.right, inner.right) {
            axes[at - 1] = Axis { size: outer.size * inner.size, ..inner };
            axes.remove(at);
        } else {
            at += 1;
        }
    }
}

/// Adds what a group does to what the node's own epilogue does.
fn apply(
    b: &mut Builder,
    site: &Site,
    finish: Option<(&Finish, ValueId)>,
    epilogue: &mut Epilogue,
    columns: u32,
) -> Result<(), LowerError> {
    let Some((finish, _)) = finish else { return Ok(()) };
    epilogue.scale *= finish.scale[0];
    epilogue.bias_scale *= finish.scale[0];
    if finish.shift.iter().any(|&shift| shift != 0.0) {
        if epilogue.bias.is_some() {
            return Err(site.refuse("has two biases, which is not supported"));
        }
        let shift = b.floats(&[finish.shift.len() as u64], &finish.shift)?;
        epilogue.bias = shift.pointer();
        epilogue.bias_scale = 1.0;
        epilogue.bias_column = u32::from(finish.shift.len() == columns as usize && columns > 1);
    }
    if let Some(residual) = finish.residual {
        let residual = b.operand(residual)?;
        epilogue.residual = b.floats_of(&residual)?.pointer();
        epilogue.residual_last = finish.residual_last;
    }
    epilogue.activation = finish.activation;
    Ok(())
}

/// Softmax or its logarithm along an axis; before version 13 along all axes from there on.
pub fn softmax(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    let x = b.operand(site.input(0)?)?;
    let x = b.floats_of(&x)?;
    let rank = x.dims().len();
    let old = site.opset < 13;
    let axis = site.axis(site.node.int("axis").unwrap_or(if old { 1 } else { -1 }), rank.max(1))?;
    let product = |dims: &[u64]| dims.iter().product::<u64>();
    let dims = x.dims().to_vec();
    let (outer, columns, inner) = match old {
        _ if rank == 0 => (1, 1, 1),
        true => (product(&dims[..axis]), product(&dims[axis..]), 1),
        false => (product(&dims[..axis]), dims[axis], product(&dims[axis + 1..])),
    };
    let y = b.output(site, 0)?;
    let softmax = Softmax {
        dtype: b.storage(),
        outer: count(site, outer)?,
        columns: count(site, columns)?,
        inner: count(site, inner)?,
        log: site.node.operator == "LogSoftmax",
        x: x.pointer(),
        y: y.pointer(),
    };
    b.push(softmax.launch())
}
