//! Element-wise expressions, and copies that change layout or type.

use crate::cuda::lower::Layouts;
use crate::cuda::lower::LowerError;
use crate::cuda::lower::Site;
use crate::cuda::lower::builder::{Builder, Operand};
use crate::cuda::lower::elementwise::is_integer;
use crate::cuda::lower::groups::{Group, Input};
use crate::cuda::lower::view::{View, axes};
use rota_graph::DType;
use rota_kernels::elementwise::{self, Domain, Elementwise, Source, Step};
use rota_kernels::{Layout, Type};

/// One launch for a group of element-wise nodes.
pub fn elementwise(b: &mut Builder, group: &Group) -> Result<(), LowerError> {
    let site = Site::new(b.flat, group.root);
    let value = site.output(0)?;
    let dims = site.sizes(value)?;
    let dtype = site.output_dtype(0).ok_or_else(|| site.refuse("gives an unknown type"))?;
    let mut operands = Vec::with_capacity(group.inputs.len());
    let mut stored = b.stored(dtype);
    for input in &group.inputs {
        let operand = match input {
            Input::Value(value) => b.operand(*value)?,
            Input::Constant(tensor) => b.constant(tensor)?,
        };
        // What a reduction left in f32 stays so.
        let whole = operand.view.elements() == dims.iter().product::<u64>();
        if stored == b.float() && operand.dtype == DType::F32 && whole && b.is_made(&operand) {
            stored = DType::F32;
        }
        operands.push(operand);
    }
    let layout = layout_of(b, &operands, &dims);
    let mut inputs = Vec::with_capacity(operands.len());
    for operand in &operands {
        // What lies the other way would be read with a stride between neighbours.
        let turned = layout == Layout::Nhwc && operand.dims() == dims && !operand.view.lies(layout);
        let operand = if turned { copy_in(b, operand, operand.dtype, layout)? } else { operand.clone() };
        inputs.push(read(b, &operand, &dims, layout)?);
    }
    let output = b.scratch_in(stored, &dims, layout);
    b.set(value, output.clone());
    launch(b, group.domain, &output, layout, inputs, group.steps.clone())
}

/// How the result lies: with channels last where something as large does.
fn layout_of(b: &Builder, operands: &[Operand], dims: &[u64]) -> Layout {
    let last = |operand: &Operand| operand.dims() == dims && operand.view.has_channels_last();
    if b.options.layout == Layouts::Nhwc && operands.iter().any(last) { Layout::Nhwc } else { Layout::Nchw }
}

/// The same elements, densely, as `dtype`.
pub fn copy(b: &mut Builder, operand: &Operand, dtype: DType) -> Result<Operand, LowerError> {
    copy_in(b, operand, dtype, Layout::Nchw)
}

/// The same elements as `dtype`, lying in `layout`.
pub fn copy_in(b: &mut Builder, operand: &Operand, dtype: DType, layout: Layout) -> Result<Operand, LowerError> {
    let output = b.scratch_in(dtype, operand.dims(), layout);
    if operand.dtype == dtype {
        super::layout::transfer(b, operand, &output)?;
        return Ok(output);
    }
    let input = read(b, operand, operand.dims(), layout)?;
    let domain = if is_integer(operand.dtype) && is_integer(dtype) { Domain::I64 } else { Domain::F32 };
    launch(b, domain, &output, layout, vec![input], vec![Step::load(Source::Input(0))])?;
    Ok(output)
}

/// Fills with zeros.
pub fn zero(b: &mut Builder, operand: &Operand) -> Result<(), LowerError> {
    launch(b, Domain::I64, operand, Layout::Nchw, Vec::new(), vec![Step::load(Source::I64(0))])
}

/// An operand as the axes of an output of these dimensions see it, in the order in which they lie.
fn read(b: &Builder, operand: &Operand, dims: &[u64], layout: Layout) -> Result<elementwise::Input, LowerError> {
    let view: View = operand.view.broadcast(dims).ok_or_else(|| b.refuse("has inputs that do not broadcast"))?;
    let stride = |&stride: &i64| {
        u32::try_from(stride).map_err(|_| b.refuse("reads a tensor backwards, or one that is too large"))
    };
    let view = view.picked(&axes(layout, dims.len()));
    let strides = view.strides.iter().map(stride).collect::<Result<Vec<_>, _>>()?;
    Ok(elementwise::Input { pointer: operand.pointer(), dtype: kind(b, operand.dtype)?, strides })
}

fn launch(
    b: &mut Builder,
    domain: Domain,
    output: &Operand,
    layout: Layout,
    inputs: Vec<elementwise::Input>,
    steps: Vec<Step>,
) -> Result<(), LowerError> {
    let dim = |&dim: &u64| u32::try_from(dim).map_err(|_| b.refuse(format!("has a dimension of {dim}")));
    let lying = output.view.picked(&axes(layout, output.dims().len()));
    let dims = lying.dims.iter().map(dim).collect::<Result<Vec<_>, _>>()?;
    if dims.contains(&0) {
        return Ok(());
    }
    let output_type = kind(b, output.dtype)?;
    b.push(Elementwise { domain, dims, output: output.pointer(), output_type, inputs, steps }.launch())
}

/// The kernels' word for an element type.
fn kind(b: &Builder, dtype: DType) -> Result<Type, LowerError> {
    Ok(match dtype.0 {
        1 => Type::F32,
        2 => Type::U8,
        3 => Type::I8,
        4 => Type::U16,
        5 => Type::I16,
        6 => Type::I32,
        7 => Type::I64,
        9 => Type::Bool,
        10 => Type::F16,
        12 => Type::U32,
        16 => Type::Bf16,
        _ => return Err(b.refuse(format!("has elements of type {}, which the kernels do not have", dtype.name()))),
    })
}
