//! Reductions over any axes, and the places of extremes.

use super::{copy, count};
use crate::cuda::lower::builder::{Builder, Operand};
use crate::cuda::lower::epilogue::Finish;
use crate::cuda::lower::view::View;
use crate::cuda::lower::{LowerError, Site};
use rota_graph::{DType, ValueId};
use rota_kernels::{Reduce, Reduction, Type};

pub fn reduce(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    let reduction = match site.node.operator.as_str() {
        "ReduceSum" => Reduction::Sum,
        "ReduceMean" => Reduction::Mean,
        "ReduceMax" => Reduction::Max,
        "ReduceMin" => Reduction::Min,
        "ReduceProd" => Reduction::Product,
        "ReduceSumSquare" => Reduction::SumSquare,
        "ReduceL1" => Reduction::L1,
        "ReduceL2" => Reduction::L2,
        "ReduceLogSum" => Reduction::LogSum,
        "ReduceLogSumExp" => Reduction::LogSumExp,
        "ArgMax" => Reduction::ArgMax,
        "ArgMin" => Reduction::ArgMin,
        _ => return Err(LowerError::Unsupported(site.node.to_string())),
    };
    let place = matches!(reduction, Reduction::ArgMax | Reduction::ArgMin);
    let x = b.operand(site.input(0)?)?;
    let axes = axes(site, x.dims().len(), place)?;
    let x = match (axes.is_empty(), x.dtype.0) {
        (true, _) => {
            b.set(site.output(0)?, x);
            return Ok(());
        }
        (_, 1 | 6 | 7 | 10) => x,
        (_, 16) => b.floats_of(&x)?,
        // Narrow integers are reduced as i32.
        _ => copy(b, &x, DType::I32)?,
    };
    let (x, outer, reduced, inner) = arrange(b, x, &axes)?;
    let dtype = match x.dtype.0 {
        1 => Type::F32,
        10 => Type::F16,
        6 => Type::I32,
        _ => Type::I64,
    };
    // Sums of many overflow fp16, and what is made of them (a variance: one large number less another) loses what it keeps.
    let extreme = matches!(reduction, Reduction::Max | Reduction::Min);
    let wide = dtype == Type::F16 && !extreme && !place;
    let stored = match (place, wide) {
        (true, _) => DType::I64,
        (false, true) => DType::F32,
        (false, false) => x.dtype,
    };
    let wanted = site.output_dtype(0).map(|dtype| b.stored(dtype));
    let y = b.scratch(stored, &site.output_dims(0)?);
    if y.view.elements() > 0 {
        if reduced == 0 {
            return Err(site.refuse("reduces an axis of no elements"));
        }
        let [outer, reduced, inner] = [count(site, outer)?, count(site, reduced)?, count(site, inner)?];
        let last = site.flag("select_last_index");
        b.push(
            Reduce { dtype, reduction, last, wide, outer, count: reduced, inner, x: x.pointer(), y: y.pointer() }
                .launch(),
        )?;
    }
    let y = match wanted {
        Some(wanted) if wanted != y.dtype && y.dtype != DType::F32 => copy(b, &y, wanted)?,
        _ => y,
    };
    b.set(site.output(0)?, y);
    Ok(())
}

fn axes(site: &Site, rank: usize, place: bool) -> Result<Vec<usize>, LowerError> {
    if place {
        return Ok(vec![site.axis(site.node.int("axis").unwrap_or(0), rank)?]);
    }
    let given = site.integers("axes", 1)?.filter(|axes| !axes.is_empty());
    match given {
        None if site.flag("noop_with_empty_axes") => Ok(Vec::new()),
        None => Ok((0..rank).collect()),
        Some(axes) => {
            let mut axes = axes.iter().map(|&axis| site.axis(axis, rank)).collect::<Result<Vec<_>, _>>()?;
            axes.sort_unstable();
            axes.dedup();
            Ok(axes)
        }
    }
}

/// The tensor with its reduced axes side by side, and the sizes before, of and behind them.
pub(super) fn arrange(b: &mut Builder, x: Operand, axes: &[usize]) -> Result<(Operand, u64, u64, u64), LowerError> {
    let product = |dims: &[u64]| dims.iter().product::<u64>();
    let (first, last) = (axes[0], axes[axes.len() - 1]);
    if last - first + 1 == axes.len() {
        let x = b.dense(&x)?;
        let dims = x.dims();
        let sizes = (product(&dims[..first]), product(&dims[first..=last]), product(&dims[last + 1..]));
        return Ok((x, sizes.0, sizes.1, sizes.2));
    }
    let kept = (0..x.dims().len()).filter(|axis| !axes.contains(axis));
    let order: Vec<usize> = kept.chain(axes.iter().copied()).collect();
    let (dims, strides) = order.iter().map(|&axis| (x.view.dims[axis], x.view.strides[axis])).unzip();
    let turned = Operand { view: View { offset: x.view.offset, dims, strides }, ..x };
    let turned = b.dense(&turned)?;
    let kept = turned.dims().len() - axes.len();
    let (outer, reduced) = (product(&turned.dims()[..kept]), product(&turned.dims()[kept..]));
    Ok((turned, outer, reduced, 1))
}
