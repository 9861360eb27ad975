//! What can be computed before any request comes: arithmetic on shapes, on sizes as floats (a resize's factors), and rearranged weights.

use super::Site;
use super::view::View;
use half::{bf16, f16};
use rota_graph::{DType, Tensor};

/// A constant's elements, in the arithmetic that ONNX does them in.
enum Elements {
    /// Integers and truth values.
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Doubles(Vec<f64>),
}

/// The outputs of a node whose inputs are all constants; `None` for an operator that is not computed here.
pub(super) fn evaluate(site: &Site) -> Option<Vec<Tensor>> {
    let input = |at: usize| site.node.input(at).and_then(|id| site.flat.graph.constant(id));
    if let Some(first) = input(0)
        && let Some(views) = site.views(&View::dense(&first.dims)).ok()?
    {
        return views.iter().map(|view| pick(first, view)).collect();
    }
    let dims = site.output_dims(0);
    let dtype = site.output_dtype(0);
    let one = match site.node.operator.as_str() {
        "Cast" => cast(input(0)?, dtype?)?,
        "Concat" => concat(site, &dims.ok()?)?,
        "Gather" => gather(site, &dims.ok()?)?,
        "Where" => choose([input(0)?, input(1)?, input(2)?], &dims.ok()?)?,
        "ConstantOfShape" => {
            let value = site.node.tensor("value").cloned().unwrap_or(Tensor::f32s(vec![1], &[0.0]));
            pick(&value, &View { offset: 0, strides: vec![0; dims.as_ref().ok()?.len()], dims: dims.ok()? })?
        }
        "Range" => range(input(0)?, input(1)?, input(2)?)?,
        _ => match (input(0)?, input(1)) {
            (first, None) => unary(&site.node.operator, first)?,
            (first, Some(second)) if site.node.inputs.len() == 2 => {
                binary(&site.node.operator, first, second, &dims.ok()?, dtype?)?
            }
            _ => return None,
        },
    };
    Some(vec![one])
}

/// The elements of a view, as a tensor of their own.
pub(super) fn pick(tensor: &Tensor, view: &View) -> Option<Tensor> {
    let bytes = usize::try_from(tensor.dtype.bits()? / 8).ok().filter(|&bytes| bytes > 0)?;
    if view.is_dense() && view.offset == 0 && view.elements() == tensor.elements() {
        return Some(Tensor { dtype: tensor.dtype, dims: view.dims.clone(), data: tensor.data.clone() });
    }
    let mut data = Vec::with_capacity(usize::try_from(view.elements()).ok()? * bytes);
    for place in view.places() {
        let at = usize::try_from(place).ok()? * bytes;
        data.extend_from_slice(tensor.data.get(at..at + bytes)?);
    }
    Some(Tensor { dtype: tensor.dtype, dims: view.dims.clone(), data: data.into() })
}

fn each<const N: usize, T>(tensor: &Tensor, from: fn([u8; N]) -> T) -> Vec<T> {
    tensor.data.as_chunks::<N>().0.iter().map(|chunk| from(*chunk)).collect()
}

fn elements(tensor: &Tensor) -> Option<Elements> {
    Some(match tensor.dtype.0 {
        1 => Elements::Floats(each(tensor, f32::from_le_bytes)),
        10 => Elements::Floats(each(tensor, |b| f16::from_le_bytes(b).to_f32())),
        16 => Elements::Floats(each(tensor, |b| bf16::from_le_bytes(b).to_f32())),
        11 => Elements::Doubles(each(tensor, f64::from_le_bytes)),
        2 | 9 => Elements::Ints(tensor.data.iter().map(|&byte| i64::from(byte)).collect()),
        3 => Elements::Ints(each(tensor, |b| i64::from(i8::from_le_bytes(b)))),
        4 => Elements::Ints(each(tensor, |b| i64::from(u16::from_le_bytes(b)))),
        5 => Elements::Ints(each(tensor, |b| i64::from(i16::from_le_bytes(b)))),
        6 => Elements::Ints(each(tensor, |b| i64::from(i32::from_le_bytes(b)))),
        12 => Elements::Ints(each(tensor, |b| i64::from(u32::from_le_bytes(b)))),
        7 => Elements::Ints(each(tensor, i64::from_le_bytes)),
        _ => return None,
    })
}

fn tensor(dtype: DType, dims: &[u64], elements: Elements) -> Option<Tensor> {
    let floats = |values: Vec<f64>, narrow: &dyn Fn(f64) -> Vec<u8>| values.into_iter().flat_map(narrow).collect();
    let data: Vec<u8> = match elements {
        Elements::Floats(values) => match dtype.0 {
            1 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            10 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            11 => values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect(),
            9 => values.iter().map(|&v| u8::from(v != 0.0)).collect(),
            _ => return tensor(dtype, dims, Elements::Ints(values.iter().map(|&v| v as i64).collect())),
        },
        Elements::Doubles(values) => match dtype.0 {
            11 => floats(values, &|v| v.to_le_bytes().to_vec()),
            9 => values.iter().map(|&v| u8::from(v != 0.0)).collect(),
            1 | 10 | 16 => return tensor(dtype, dims, Elements::Floats(values.iter().map(|&v| v as f32).collect())),
            _ => return tensor(dtype, dims, Elements::Ints(values.iter().map(|&v| v as i64).collect())),
        },
        Elements::Ints(values) => match dtype.0 {
            9 => values.iter().map(|&v| u8::from(v != 0)).collect(),
            2 | 3 => values.iter().map(|&v| v as u8).collect(),
            4 | 5 => values.iter().flat_map(|&v| (v as u16).to_le_bytes()).collect(),
            6 | 12 => values.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
            7 | 13 => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
            11 => values.iter().flat_map(|&v| (v as f64).to_le_bytes()).collect(),
            1 | 10 | 16 => return tensor(dtype, dims, Elements::Floats(values.iter().map(|&v| v as f32).collect())),
            _ => return None,
        },
    };
    Some(Tensor { dtype, dims: dims.to_vec(), data: data.into() })
}

/// A constant as `dtype`.
pub(super) fn cast(from: &Tensor, dtype: DType) -> Option<Tensor> {
    if from.dtype == dtype { Some(from.clone()) } else { tensor(dtype, &from.dims, elements(from)?) }
}

/// A constant's elements as f32.
pub(super) fn floats(of: &Tensor) -> Option<Vec<f32>> {
    match elements(of)? {
        Elements::Floats(values) => Some(values),
        Elements::Doubles(values) => Some(values.into_iter().map(|v| v as f32).collect()),
        Elements::Ints(values) => Some(values.into_iter().map(|v| v as f32).collect()),
    }
}

/// The one element of a constant, exactly but for integers beyond 2^53.
pub(super) fn number(of: &Tensor) -> Option<f64> {
    if of.elements() != 1 {
        return None;
    }
    match elements(of)? {
        Elements::Floats(values) => Some(f64::from(values[0])),
        Elements::Doubles(values) => Some(values[0]),
        Elements::Ints(values) => Some(values[0] as f64),
    }
}

fn unary(operator: &str, input: &Tensor) -> Option<Tensor> {
    let float: fn(f64) -> f64 = match operator {
        "Floor" => f64::floor,
        "Ceil" => f64::ceil,
        "Round" => f64::round_ties_even,
        "Sqrt" => f64::sqrt,
        "Exp" => f64::exp,
        "Log" => f64::ln,
        "Neg" => |v| -v,
        "Abs" => f64::abs,
        "Reciprocal" => |v| 1.0 / v,
        "Relu" => |v| v.max(0.0),
        "Sign" => |v| if v == 0.0 { 0.0 } else { v.signum() },
        "Not" => |v| f64::from(v == 0.0),
        _ => return None,
    };
    let int: Option<fn(i64) -> i64> = match operator {
        "Neg" => Some(i64::wrapping_neg),
        "Abs" => Some(i64::wrapping_abs),
        "Sign" => Some(i64::signum),
        "Relu" => Some(|v| v.max(0)),
        "Not" => Some(|v| i64::from(v == 0)),
        _ => None,
    };
    let computed = match elements(input)? {
        Elements::Ints(values) => Elements::Ints(values.into_iter().map(int?).collect()),
        Elements::Floats(values) => Elements::Floats(values.into_iter().map(|v| float(f64::from(v)) as f32).collect()),
        Elements::Doubles(values) => Elements::Doubles(values.into_iter().map(float).collect()),
    };
    tensor(input.dtype, &input.dims, computed)
}

fn int_operation(operator: &str) -> Option<fn(i64, i64) -> i64> {
    Some(match operator {
        "Add" => i64::wrapping_add,
        "Sub" => i64::wrapping_sub,
        "Mul" => i64::wrapping_mul,
        "Div" => |a, b| if b == 0 { 0 } else { a.wrapping_div(b) },
        "Mod" => |a, b| if b == 0 { 0 } else { a.wrapping_rem(b).wrapping_add(b).wrapping_rem(b) },
        "Min" => i64::min,
        "Max" => i64::max,
        "Pow" => |a, b| u32::try_from(b).map_or(0, |b| a.wrapping_pow(b)),
        "Equal" => |a, b| i64::from(a == b),
        "Greater" => |a, b| i64::from(a > b),
        "GreaterOrEqual" => |a, b| i64::from(a >= b),
        "Less" => |a, b| i64::from(a < b),
        "LessOrEqual" => |a, b| i64::from(a <= b),
        "And" => |a, b| i64::from(a != 0 && b != 0),
        "Or" => |a, b| i64::from(a != 0 || b != 0),
        "Xor" => |a, b| i64::from((a != 0) != (b != 0)),
        _ => return None,
    })
}

/// Single precision sums, products and quotients that are computed in double and rounded once are the same to the bit.
fn float_operation(operator: &str) -> Option<fn(f64, f64) -> f64> {
    Some(match operator {
        "Add" => |a, b| a + b,
        "Sub" => |a, b| a - b,
        "Mul" => |a, b| a * b,
        "Div" => |a, b| a / b,
        "Min" => f64::min,
        "Max" => f64::max,
        "Pow" => f64::powf,
        "Equal" => |a, b| f64::from(a == b),
        "Greater" => |a, b| f64::from(a > b),
        "GreaterOrEqual" => |a, b| f64::from(a >= b),
        "Less" => |a, b| f64::from(a < b),
        "LessOrEqual" => |a, b| f64::from(a <= b),
        _ => return None,
    })
}

fn binary(operator: &str, a: &Tensor, b: &Tensor, dims: &[u64], dtype: DType) -> Option<Tensor> {
    let wide = |tensor: &Tensor| View::dense(&tensor.dims).broadcast(dims);
    let (a_view, b_view) = (wide(a)?, wide(b)?);
    let pairs = || a_view.places().map(|at| at as usize).zip(b_view.places().map(|at| at as usize));
    let computed = match (elements(a)?, elements(b)?) {
        (Elements::Ints(a), Elements::Ints(b)) => {
            let operation = int_operation(operator)?;
            Elements::Ints(pairs().map(|(i, j)| operation(a[i], b[j])).collect())
        }
        (Elements::Floats(a), Elements::Floats(b)) => {
            let operation = float_operation(operator)?;
            Elements::Floats(pairs().map(|(i, j)| operation(f64::from(a[i]), f64::from(b[j])) as f32).collect())
        }
        (Elements::Doubles(a), Elements::Doubles(b)) => {
            let operation = float_operation(operator)?;
            Elements::Doubles(pairs().map(|(i, j)| operation(a[i], b[j])).collect())
        }
        _ => return None,
    };
    tensor(dtype, dims, computed)
}

fn choose([condition, yes, no]: [&Tensor; 3], dims: &[u64]) -> Option<Tensor> {
    let wide = |tensor: &Tensor| pick(tensor, &View::dense(&tensor.dims).broadcast(dims)?);
    let (condition, yes, no) = (wide(condition)?, wide(yes)?, wide(no)?);
    let bytes = usize::try_from(yes.dtype.bits()? / 8).ok()?;
    let mut data = Vec::with_capacity(yes.data.len());
    for (at, &chosen) in condition.data.iter().enumerate() {
        let from = if chosen != 0 { &yes } else { &no };
        data.extend_from_slice(from.data.get(at * bytes..(at + 1) * bytes)?);
    }
    Some(Tensor { dtype: yes.dtype, dims: dims.to_vec(), data: data.into() })
}

fn concat(site: &Site, dims: &[u64]) -> Option<Tensor> {
    let axis = site.axis(site.node.int("axis")?, dims.len()).ok()?;
    let parts: Vec<&Tensor> =
        site.node.inputs.iter().map(|id| site.flat.graph.constant((*id)?)).collect::<Option<_>>()?;
    let dtype = parts.first()?.dtype;
    let bytes = dtype.bits()? / 8;
    let outer: u64 = dims[..axis].iter().product();
    let mut data = Vec::new();
    for row in 0..outer {
        for part in &parts {
            let run = (part.dims[axis..].iter().product::<u64>() * bytes) as usize;
            data.extend_from_slice(part.data.get(row as usize * run..(row as usize + 1) * run)?);
        }
    }
    Some(Tensor { dtype, dims: dims.to_vec(), data: data.into() })
}

fn gather(site: &Site, dims: &[u64]) -> Option<Tensor> {
    let constant = |at: usize| site.flat.graph.constant(site.node.input(at)?);
    let (data, indices) = (constant(0)?, constant(1)?);
    let Elements::Ints(indices) = elements(indices)? else { return None };
    let axis = site.axis(site.node.int("axis").unwrap_or(0), data.dims.len()).ok()?;
    let length = data.dims[axis] as i64;
    let run = (data.dims[axis + 1..].iter().product::<u64>() * (data.dtype.bits()? / 8)) as usize;
    let outer: u64 = data.dims[..axis].iter().product();
    let mut picked = Vec::new();
    for row in 0..outer as i64 {
        for &index in &indices {
            let index = if index < 0 { index + length } else { index };
            let at = usize::try_from(row * length + index).ok().filter(|_| (0..length).contains(&index))? * run;
            picked.extend_from_slice(data.data.get(at..at + run)?);
        }
    }
    Some(Tensor { dtype: data.dtype, dims: dims.to_vec(), data: picked.into() })
}

fn range(start: &Tensor, limit: &Tensor, step: &Tensor) -> Option<Tensor> {
    const LONGEST: f64 = 16_777_216.0;
    let dtype = start.dtype;
    match [elements(start)?, elements(limit)?, elements(step)?] {
        [Elements::Ints(start), Elements::Ints(limit), Elements::Ints(step)] => {
            let (start, limit, step) = (*start.first()?, *limit.first()?, *step.first()?);
            let count = ((limit as f64 - start as f64) / step as f64).ceil().max(0.0);
            let count = (count <= LONGEST).then_some(count as i64)?;
            let values: Vec<i64> = (0..count).map(|at| start + at * step).collect();
            tensor(dtype, &[count as u64], Elements::Ints(values))
        }
        [Elements::Floats(start), Elements::Floats(limit), Elements::Floats(step)] => {
            let (start, limit, step) = (*start.first()?, *limit.first()?, *step.first()?);
            let count = (f64::from(limit - start) / f64::from(step)).ceil().max(0.0);
            let count = (count <= LONGEST).then_some(count as u64)?;
            let values = (0..count).map(|at| start + at as f32 * step).collect();
            tensor(dtype, &[count], Elements::Floats(values))
        }
        _ => None,
    }
}
