//! From what a model declares to a [`Signature`]: which axis of each tensor is the batch axis.
//!
//! The rule: the batch symbol is the name of axis 0 of the first input whose axis 0 is dynamic or, when there is none, the
//! first dynamic name of any input. Every tensor with a dimension of that name has its batch axis there. A dynamic axis 0
//! without a name counts as batch too, and so does one whose name a converter made up per tensor. Where the batch itself has
//! no name, so does the only dynamic axis of a tensor: a recurrent state of [2, ?, 128]. What the caller says about a tensor
//! comes before all of this. A wrong guess is found by running the network, and so is the axis of an output that this leaves
//! without one: see [`crate::check`].

use super::{CompileOptions, LoadError};
use crate::{DType, Dim, Shape, Signature, TensorSpec};
use std::path::Path;

/// A tensor as the model declares it.
pub(crate) struct Declared {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) dims: Vec<Dim>,
}

pub(crate) fn signature(
    file: &Path,
    mut inputs: Vec<Declared>,
    mut outputs: Vec<Declared>,
    options: &CompileOptions,
) -> Result<Signature, LoadError> {
    // Written by converters where there is no name; twice in one tensor it would tie two axes together.
    for dim in inputs.iter_mut().chain(&mut outputs).flat_map(|tensor| &mut tensor.dims) {
        if *dim == Dim::Dynamic("?".into()) {
            *dim = Dim::Dynamic(String::new());
        }
    }
    for (role, tensors) in [("input", &inputs), ("output", &outputs)] {
        if let Some(tensor) = tensors.iter().find(|tensor| tensor.dims.len() > Shape::RANK_MAX) {
            let (tensor, rank) = (tensor.name.clone(), tensor.dims.len());
            return Err(LoadError::Rank { file: file.to_owned(), role, tensor, rank });
        }
    }
    let error = |text| LoadError::BatchAxis { file: file.to_owned(), text };
    check_overrides(&inputs, &outputs, options).map_err(error)?;
    let symbol = options.batch_symbol.clone().or_else(|| batch_symbol(&inputs, options));
    let specify = |tensors: Vec<Declared>| {
        tensors.into_iter().map(|tensor| {
            let batch_axis = match options.batch_axes.get(&tensor.name) {
                Some(axis) => *axis,
                None => batch_axis(&tensor.dims, symbol.as_deref()),
            };
            TensorSpec { name: tensor.name, dtype: tensor.dtype, dims: tensor.dims, batch_axis }
        })
    };
    let signature = Signature { inputs: specify(inputs).collect(), outputs: specify(outputs).collect() };
    if signature.batches() { Ok(signature) } else { Ok(unbatched(signature)) }
}

/// Without a batch axis among the inputs no output can have one.
fn unbatched(mut signature: Signature) -> Signature {
    signature.outputs.iter_mut().for_each(|output| output.batch_axis = None);
    signature
}

fn batch_symbol(inputs: &[Declared], options: &CompileOptions) -> Option<String> {
    // An input that the caller called unbatched has no say.
    let inputs = || inputs.iter().filter(|input| !matches!(options.batch_axes.get(&input.name), Some(None)));
    if let Some(axis) = inputs().find_map(|input| Some((input, (*options.batch_axes.get(&input.name)?)?))) {
        return axis.0.dims.get(axis.1).and_then(symbol).map(str::to_owned);
    }
    let first = inputs().find_map(|input| input.dims.first().and_then(symbol));
    first.or_else(|| inputs().flat_map(|input| &input.dims).find_map(symbol)).map(str::to_owned)
}

fn batch_axis(dims: &[Dim], batch_symbol: Option<&str>) -> Option<usize> {
    // Without a batch symbol the inputs have no dynamic dimension at all.
    let batch_symbol = batch_symbol?;
    let unnamed = |axis: &usize| symbol(&dims[*axis]).is_some_and(is_unnamed);
    let first = Some(0).filter(|_| !dims.is_empty()).filter(unnamed);
    if is_unnamed(batch_symbol) {
        let mut dynamic = (0..dims.len()).filter(|&axis| symbol(&dims[axis]).is_some());
        let only = dynamic.next().filter(|_| dynamic.next().is_none()).filter(unnamed);
        return first.or(only);
    }
    dims.iter().position(|dim| symbol(dim) == Some(batch_symbol)).or(first)
}

fn symbol(dim: &Dim) -> Option<&str> {
    match dim {
        Dim::Fixed(_) => None,
        Dim::Dynamic(name) => Some(name),
    }
}

/// No name, or one that a converter numbered: tf2onnx's `unk__31`, Paddle's `p2o.DynamicDimension.0`.
fn is_unnamed(name: &str) -> bool {
    let numbered = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    name.is_empty() || numbered("unk__") || numbered("p2o.DynamicDimension.")
}

fn check_overrides(inputs: &[Declared], outputs: &[Declared], options: &CompileOptions) -> Result<(), String> {
    let tensors = || inputs.iter().chain(outputs);
    for (name, axis) in &options.batch_axes {
        let Some(tensor) = tensors().find(|tensor| tensor.name == *name) else {
            let names: Vec<&str> = tensors().map(|tensor| tensor.name.as_str()).collect();
            return Err(format!("a batch axis is given for '{name}'; the model's tensors are {}", names.join(", ")));
        };
        match axis.map(|axis| (axis, tensor.dims.get(axis))) {
            Some((axis, None)) => {
                return Err(format!(
                    "batch axis {axis} is given for '{name}', which has {} dimensions",
                    tensor.dims.len()
                ));
            }
            Some((axis, Some(Dim::Fixed(size)))) => {
                return Err(format!("batch axis {axis} is given for '{name}', where the model fixes {size}"));
            }
            _ => {}
        }
    }
    match &options.batch_symbol {
        Some(name) if !inputs.iter().flat_map(|t| &t.dims).any(|d| symbol(d) == Some(name)) => {
            Err(format!("the batch dimension is said to be '{name}', which no input has"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &str) -> Vec<Dim> {
        let dim = |word: &str| match word.parse() {
            Ok(size) => Dim::Fixed(size),
            Err(_) => Dim::Dynamic(word.trim_matches('_').to_owned()),
        };
        text.split_whitespace().map(dim).collect()
    }

    fn axes(inputs: &[&str], outputs: &[&str], options: &CompileOptions) -> Result<Vec<Option<usize>>, LoadError> {
        let declare = |role: &str, tensors: &[&str]| -> Vec<Declared> {
            let declared = |(i, text): (usize, &&str)| Declared {
                name: format!("{role}{i}"),
                dtype: DType::F32,
                dims: dims(text),
            };
            tensors.iter().enumerate().map(declared).collect()
        };
        let signature = signature(Path::new("m.onnx"), declare("x", inputs), declare("y", outputs), options)?;
        Ok(signature.inputs.iter().chain(&signature.outputs).map(|spec| spec.batch_axis).collect())
    }

    #[test]
    fn the_batch_symbol_is_followed_to_every_axis() {
        type Case = (&'static [&'static str], &'static [&'static str], &'static [Option<usize>]);
        let cases: [Case; 12] = [
            (&["N 3 224 224"], &["N 1000"], &[Some(0), Some(0)]),
            (
                &["batch len", "2 batch 128", ""],
                &["batch 1", "2 batch 128"],
                &[Some(0), Some(1), None, Some(0), Some(1)],
            ),
            (&["_ 3"], &["_ 2"], &[Some(0), Some(0)]),
            (&["4 3"], &["4 2"], &[None, None]),
            (&["unk__1 3", "unk__2 5"], &["unk__3 2"], &[Some(0), Some(0), Some(0)]),
            (&["3 len"], &["len"], &[Some(1), Some(0)]),
            (&["N 3", "5"], &["M 2"], &[Some(0), None, None]),
            (&["1 3"], &["_ 2"], &[None, None]),
            (&["? ?", "2 ? 128", ""], &["? 1", "? ? ?"], &[Some(0), Some(1), None, Some(0), Some(0)]),
            (&["unk__1 3 len", "4 len"], &["unk__2"], &[Some(0), None, Some(0)]),
            (&["unk__1 3", "4 unk__2 unk__3"], &["5 unk__4"], &[Some(0), None, Some(1)]),
            (
                &["p2o.DynamicDimension.0 3 ? ?"],
                &["p2o.DynamicDimension.2 p2o.DynamicDimension.3 6"],
                &[Some(0), Some(0)],
            ),
        ];
        for (inputs, outputs, expected) in cases {
            let found = axes(inputs, outputs, &CompileOptions::default()).unwrap();
            assert_eq!(found, expected, "{inputs:?} -> {outputs:?}");
        }
    }

    #[test]
    fn what_the_caller_says_comes_first() {
        let mut options = CompileOptions { batch_symbol: Some("time".into()), ..Default::default() };
        assert_eq!(axes(&["rows time 4"], &["time 2"], &options).unwrap(), [Some(1), Some(0)]);
        options.batch_symbol = None;
        options.batch_axes.insert("x0".into(), None);
        assert_eq!(axes(&["N 4", "M 2"], &["M"], &options).unwrap(), [None, Some(0), Some(0)]);
    }

    #[test]
    fn an_override_that_fits_nothing_is_an_error_that_says_what_is_there() {
        let with = |name: &str, axis| CompileOptions { batch_axes: [(name.into(), axis)].into(), ..Default::default() };
        let text = |options| axes(&["N 4"], &["N"], &options).unwrap_err().to_string();
        assert_eq!(text(with("z", None)), "m.onnx: a batch axis is given for 'z'; the model's tensors are x0, y0");
        assert_eq!(text(with("x0", Some(2))), "m.onnx: batch axis 2 is given for 'x0', which has 2 dimensions");
        assert_eq!(text(with("x0", Some(1))), "m.onnx: batch axis 1 is given for 'x0', where the model fixes 4");
        let options = CompileOptions { batch_symbol: Some("B".into()), ..Default::default() };
        assert_eq!(text(options), "m.onnx: the batch dimension is said to be 'B', which no input has");
    }
}
