//! Operators that put tensors together, pick from them, or pad them.

use super::count;
use crate::cuda::lower::builder::{Builder, Operand};
use crate::cuda::lower::epilogue::Finish;
use crate::cuda::lower::evaluate;
use crate::cuda::lower::view::View;
use crate::cuda::lower::{Layouts, LowerError, Site};
use rota_graph::{DType, ValueId};
use rota_kernels::layout::{Copy, Gather, Pad, PadMode, Picks};
use rota_kernels::{Layout, Pointer, Type};

/// Copies the elements of a view to where another view says.
pub(super) fn transfer(b: &mut Builder, from: &Operand, to: &Operand) -> Result<(), LowerError> {
    if from.view.elements() == 0 {
        return Ok(());
    }
    let dim = |&dim: &u64| u32::try_from(dim).map_err(|_| b.refuse(format!("has a dimension of {dim}")));
    let dims = from.dims().iter().map(dim).collect::<Result<Vec<_>, _>>()?;
    let (x_strides, y_strides) = (from.view.strides.clone(), to.view.strides.clone());
    let element_bytes = from.element_bytes() as u32;
    b.push(Copy { element_bytes, dims, x: from.pointer(), x_strides, y: to.pointer(), y_strides }.launch())
}

/// The same elements, densely.
pub fn dense(b: &mut Builder, operand: &Operand) -> Result<Operand, LowerError> {
    let output = b.scratch(operand.dtype, operand.dims());
    transfer(b, operand, &output)?;
    Ok(output)
}

pub fn concat(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    let mut output = b.output(site, 0)?;
    let axis = site.axis(site.node.int("axis").unwrap_or(1), output.dims().len())?;
    let mut layout = Layout::Nchw;
    for at in 0..site.node.inputs.len() {
        if b.operand(site.input(at)?)?.view.has_channels_last() && b.options.layout == Layouts::Nhwc {
            layout = Layout::Nhwc;
        }
    }
    output.view = View::laid_out(&output.view.dims, layout);
    b.set(site.output(0)?, output.clone());
    let mut begin = 0;
    for at in 0..site.node.inputs.len() {
        let mut part = b.operand(site.input(at)?)?;
        if part.dtype != output.dtype {
            part = super::copy_in(b, &part, output.dtype, layout)?;
        }
        let mut place = output.clone();
        place.view.offset += begin * place.view.strides[axis];
        begin += part.dims()[axis] as i64;
        place.view.dims.clone_from(&part.view.dims);
        b.writes(layout);
        transfer(b, &part, &place)?;
    }
    Ok(())
}

/// Each axis as often as the second input says.
pub fn tile(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    let x = b.operand(site.input(0)?)?;
    let repeats = site.integers("", 1)?.unwrap_or_default();
    if repeats.len() != x.dims().len() {
        return Err(site.refuse("repeats another number of axes than its input's"));
    }
    let (mut dims, mut strides) = (Vec::new(), Vec::new());
    for ((&dim, &stride), &times) in x.view.dims.iter().zip(&x.view.strides).zip(&repeats) {
        dims.extend([times.max(0) as u64, dim]);
        strides.extend([0, stride]);
    }
    let wide = Operand { view: View { offset: x.view.offset, dims, strides }, ..x };
    let mut tiled = dense(b, &wide)?;
    tiled.view = View::dense(&site.output_dims(0)?);
    b.set(site.output(0)?, tiled);
    Ok(())
}

/// Blocks of channels become pixels, or the other way round.
pub fn depth_space(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    let output = site.output_dims(0)?;
    let x = b.input(site, 0)?;
    let size = site.node.int("blocksize").and_then(|size| u64::try_from(size).ok()).filter(|&size| size > 0);
    let size = size.ok_or_else(|| site.refuse("lacks its blocksize"))?;
    let &[images, channels, height, width] = x.dims() else { return Err(site.refuse("takes no picture")) };
    let (dims, order): (Vec<u64>, [usize; 6]) = match site.node.operator.as_str() {
        "SpaceToDepth" if site.node.string("mode") == Some("CRD") => {
            (vec![images, channels, height / size, size, width / size, size], [0, 1, 3, 5, 2, 4])
        }
        "SpaceToDepth" => (vec![images, channels, height / size, size, width / size, size], [0, 3, 5, 1, 2, 4]),
        _ if site.node.string("mode") == Some("CRD") => {
            (vec![images, channels / (size * size), size, size, height, width], [0, 1, 4, 2, 5, 3])
        }
        _ => (vec![images, size, size, channels / (size * size), height, width], [0, 3, 4, 1, 5, 2]),
    };
    let view = View { offset: x.view.offset, ..View::dense(&dims) };
    let (dims, strides) = order.iter().map(|&axis| (view.dims[axis], view.strides[axis])).unzip();
    let turned = Operand { view: View { offset: view.offset, dims, strides }, ..x };
    let mut made = dense(b, &turned)?;
    made.view = View::dense(&output);
    b.set(site.output(0)?, made);
    Ok(())
}

pub fn gather(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    let data = b.input(site, 0)?;
    let indices = b.operand(site.input(1)?)?;
    let indices = match indices.dtype {
        DType::I32 | DType::I64 => b.dense(&indices)?,
        _ => return Err(site.refuse("has indices that are no integers")),
    };
    let axis = site.axis(site.node.int("axis").unwrap_or(0), data.dims().len())?;
    let product = |dims: &[u64]| dims.iter().product::<u64>();
    let (outer, length, inner) = (product(&data.dims()[..axis]), data.dims()[axis], product(&data.dims()[axis + 1..]));
    let elements = site.node.operator == "GatherElements";
    if elements && indices.dims().len() != data.dims().len() {
        return Err(site.refuse("has indices of another rank than its data"));
    }
    let picked = match elements {
        // Each outer step has its own block of indices, so the other axes have to be whole.
        true if (0..data.dims().len()).any(|at| at != axis && data.dims()[at] != indices.dims()[at]) => {
            return Err(site.refuse("picks from a part of its data's axes only, which is not supported"));
        }
        true => indices.dims()[axis],
        false => indices.view.elements(),
    };
    let output = b.scratch(data.dtype, &site.output_dims(0)?);
    b.set(site.output(0)?, output.clone());
    if output.view.elements() == 0 {
        return Ok(());
    }
    // The model's own indices are right, or it would not have been made; others come from a client.
    let flags = if site.constant(1).is_some() { Pointer::NONE } else { b.flag()? };
    let gather = Gather {
        element_bytes: data.element_bytes() as u32,
        outer: count(site, outer)?,
        axis: count(site, length)?,
        count: count(site, picked)?,
        inner: count(site, inner)?,
        picks: if elements { Picks::Elements } else { Picks::Rows },
        index_type: if indices.dtype == DType::I32 { Type::I32 } else { Type::I64 },
        x: data.pointer(),
        indices: indices.pointer(),
        y: output.pointer(),
        flags,
        // One flag for the whole batch: what fails is run again request by request.
        indices_per_item: count(site, indices.view.elements().max(1))?,
    };
    b.push(gather.launch())
}

pub fn pad(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    let x = b.input(site, 0)?;
    let rank = x.dims().len();
    let given = site.integers("pads", 1)?.or_else(|| site.node.ints("paddings").map(<[i64]>::to_vec));
    let given = given.ok_or_else(|| site.refuse("lacks its pads"))?;
    let axes = match site.integers("axes", 3)? {
        Some(axes) => axes.iter().map(|&axis| site.axis(axis, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).collect(),
    };
    if given.len() != 2 * axes.len() {
        return Err(site.refuse("has pads for another number of axes than its input's"));
    }
    let mut begins = vec![0i32; rank];
    let mut dims = x.dims().to_vec();
    for (at, &axis) in axes.iter().enumerate() {
        let (begin, end) = (given[at], given[at + axes.len()]);
        begins[axis] = i32::try_from(begin).map_err(|_| site.refuse("pads too much"))?;
        let padded = dims[axis] as i64 + begin + end;
        dims[axis] = u64::try_from(padded).map_err(|_| site.refuse("cuts off more than there is"))?;
    }
    let mode = match site.node.string("mode").unwrap_or("constant") {
        "reflect" => PadMode::Reflect,
        "edge" => PadMode::Edge,
        "wrap" => PadMode::Wrap,
        _ => PadMode::Constant,
    };
    let value = match (site.node.float("value"), site.node.input(2), site.constant(2)) {
        (Some(value), ..) => Some(rota_graph::Tensor::f32s(vec![], &[value])),
        (None, Some(_), None) => return Err(site.refuse("pads with a number that is only known when it runs")),
        (None, _, value) => value.cloned(),
    };
    let bits = value
        .and_then(|value| evaluate::cast(&value, x.dtype))
        .map_or(0, |value| value.data.iter().take(8).rev().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte)));
    let output = b.scratch(x.dtype, &dims);
    b.set(site.output(0)?, output.clone());
    if output.view.elements() == 0 {
        return Ok(());
    }
    let sizes = |dims: &[u64]| dims.iter().map(|&dim| count(site, dim)).collect::<Result<Vec<_>, _>>();
    let pad = Pad {
        element_bytes: x.element_bytes() as u32,
        mode,
        value: bits,
        input: sizes(x.dims())?,
        begins,
        output: sizes(&dims)?,
        x: x.pointer(),
        y: output.pointer(),
    };
    b.push(pad.launch())
}
