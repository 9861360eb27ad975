//! A session's inputs: read from files and cut into requests, or made from the model's signature.

use super::LoadError;
use super::spec::{SessionSpec, Size};
use crate::npy::{self, Array};
use rota_ipc::client::{self, Element, Request};
use rota_ipc::control::{DimInfo, ModelInfo, TensorInfo};
use rota_ipc::wire::DType;
use zerocopy::IntoBytes;

/// The inputs that a session's requests bring, in turns: request `n` brings each input's `n`th, modulo their number.
#[derive(Debug)]
pub struct Inputs {
    /// By the model's inputs; none of them empty.
    choices: Vec<Vec<Array>>,
}

impl Inputs {
    /// Reads the files of `spec` and makes what it gives no file for. A file with more rows along the batch axis than a request
    /// brings items is cut into several; one with fewer is repeated.
    pub fn new(spec: &SessionSpec, model: &ModelInfo, sizes: &[Size]) -> Result<Inputs, LoadError> {
        let known = |name: &String| model.inputs.iter().any(|info| info.name == *name);
        if let Some((name, _)) = spec.inputs.iter().find(|(name, _)| !known(name)) {
            let names: Vec<&str> = model.inputs.iter().map(|info| info.name.as_str()).collect();
            let text = format!("it has no input '{name}'; it has {}", names.join(", "));
            return Err(LoadError::Session { model: model.name.clone(), text });
        }
        let mut choices = Vec::with_capacity(model.inputs.len());
        for info in &model.inputs {
            let mut choice = Vec::new();
            for (_, file) in spec.inputs.iter().filter(|(name, _)| *name == info.name) {
                let array = npy::read(file)?;
                let cut = cut(&array, info, spec.items);
                choice.extend(cut.map_err(|text| LoadError::Input { file: file.clone(), text })?);
            }
            if choice.is_empty() {
                let made = make(info, spec.items, sizes);
                choice.push(made.map_err(|text| LoadError::Session { model: model.name.clone(), text })?);
            }
            choices.push(choice);
        }
        Ok(Inputs { choices })
    }

    /// How many different requests they make: at least 1.
    pub fn variants(&self) -> usize {
        self.choices.iter().map(Vec::len).max().unwrap_or(1)
    }

    /// Bytes of the inputs of one request, as an arena holds them.
    pub fn bytes(&self) -> usize {
        let largest = |choice: &Vec<Array>| choice.iter().map(|array| array.bytes.len().next_multiple_of(64)).max();
        self.choices.iter().filter_map(largest).sum()
    }

    /// The inputs of variant `variant`, in the model's order.
    pub fn arrays(&self, variant: usize) -> impl Iterator<Item = &Array> {
        self.choices.iter().map(move |choice| &choice[variant % choice.len()])
    }

    /// Writes the inputs of variant `variant` into a request.
    pub fn write(&self, variant: usize, request: &mut Request) -> Result<(), client::Error> {
        for (index, array) in self.arrays(variant).enumerate() {
            write(request, index, array)?;
        }
        Ok(())
    }
}

/// Writes one input of any element type.
fn write(request: &mut Request, index: usize, array: &Array) -> Result<(), client::Error> {
    fn typed<T: Element>(request: &mut Request, index: usize, array: &Array) -> Result<(), client::Error> {
        request.input::<T>(index, &array.dims)?.as_mut_bytes().copy_from_slice(&array.bytes);
        Ok(())
    }
    match array.dtype {
        DType::Bool | DType::U8 => typed::<u8>(request, index, array),
        DType::I8 => typed::<i8>(request, index, array),
        DType::U16 | DType::F16 | DType::Bf16 => typed::<u16>(request, index, array),
        DType::I16 => typed::<i16>(request, index, array),
        DType::U32 => typed::<u32>(request, index, array),
        DType::I32 => typed::<i32>(request, index, array),
        DType::U64 => typed::<u64>(request, index, array),
        DType::I64 => typed::<i64>(request, index, array),
        DType::F32 => typed::<f32>(request, index, array),
        DType::F64 => typed::<f64>(request, index, array),
    }
}

/// Cuts an array along the batch axis into requests of `items` rows; the last is filled up from the first rows.
fn cut(array: &Array, info: &TensorInfo, items: u32) -> Result<Vec<Array>, String> {
    let wrong = || format!("{:?} {:?} does not fit input '{}', {}", array.dtype, array.dims, info.name, declared(info));
    let fits = |(axis, (&dim, of)): (usize, (&u32, &DimInfo))| match of {
        _ if info.batch_axis == Some(axis) => dim > 0,
        DimInfo::Fixed(size) => u64::from(dim) == *size,
        DimInfo::Named(_) => true,
    };
    let ranks_agree = array.dims.len() == info.dims.len();
    if array.dtype != info.dtype || !ranks_agree || !array.dims.iter().zip(&info.dims).enumerate().all(fits) {
        return Err(wrong());
    }
    let Some(axis) = info.batch_axis else { return Ok(vec![array.clone()]) };
    let rows = array.dims[axis];
    Ok((0..rows).step_by(items as usize).map(|start| rows_of(array, axis, start, items)).collect())
}

/// `count` rows along `axis` from `start`, beginning again after the last.
fn rows_of(array: &Array, axis: usize, start: u32, count: u32) -> Array {
    let rows = array.dims[axis] as usize;
    let inner = array.dims[axis + 1..].iter().map(|&dim| dim as usize).product::<usize>() * array.dtype.bytes();
    let outer: usize = array.dims[..axis].iter().map(|&dim| dim as usize).product();
    let mut bytes = Vec::with_capacity(outer * count as usize * inner);
    for block in 0..outer {
        for row in 0..count as usize {
            let from = (block * rows + (start as usize + row) % rows) * inner;
            bytes.extend_from_slice(&array.bytes[from..from + inner]);
        }
    }
    let mut dims = array.dims.clone();
    dims[axis] = count;
    Array { dtype: array.dtype, dims, bytes }
}

/// Zeros where elements are real numbers, ones where they are whole.
fn make(info: &TensorInfo, items: u32, sizes: &[Size]) -> Result<Array, String> {
    let size = |(axis, dim): (usize, &DimInfo)| match dim {
        _ if info.batch_axis == Some(axis) => Ok(items),
        DimInfo::Fixed(size) => u32::try_from(*size).map_err(|_| format!("input '{}' is too large", info.name)),
        DimInfo::Named(name) => {
            let place = format!("{}:{axis}", info.name);
            let known = |size: &&Size| size.name == place || (!name.is_empty() && size.name == *name);
            let key = if name.is_empty() { &place } else { name };
            sizes.iter().find(known).map(|size| size.size).ok_or_else(|| {
                format!("input '{}' is {}: give --shape {key}=SIZE, or a file", info.name, declared(info))
            })
        }
    };
    let dims: Vec<u32> = info.dims.iter().enumerate().map(size).collect::<Result<_, String>>()?;
    let bytes = dims.iter().try_fold(info.dtype.bytes(), |product, &dim| product.checked_mul(dim as usize));
    let bytes = bytes.filter(|&bytes| bytes <= INPUT_BYTES_MAX);
    let mut bytes = vec![0; bytes.ok_or_else(|| format!("input '{}' of {dims:?} is too large", info.name))?];
    if !matches!(info.dtype, DType::F16 | DType::Bf16 | DType::F32 | DType::F64) {
        bytes.iter_mut().step_by(info.dtype.bytes()).for_each(|lowest| *lowest = 1);
    }
    Ok(Array { dtype: info.dtype, dims, bytes })
}

/// "F32 [batch, 3, 224, 224]"
fn declared(info: &TensorInfo) -> String {
    let dims = info.dims.iter().enumerate().map(|(axis, dim)| match dim {
        _ if info.batch_axis == Some(axis) => "batch".to_owned(),
        DimInfo::Fixed(size) => size.to_string(),
        DimInfo::Named(name) if name.is_empty() => "any".to_owned(),
        DimInfo::Named(name) => name.clone(),
    });
    format!("{:?} [{}]", info.dtype, dims.collect::<Vec<_>>().join(", "))
}

/// Larger ones would not fit an arena.
const INPUT_BYTES_MAX: usize = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn info(dims: &[&str], batch_axis: Option<usize>) -> TensorInfo {
        let dims = dims.iter().map(|dim| match dim.parse() {
            Ok(size) => DimInfo::Fixed(size),
            Err(_) => DimInfo::Named(dim.to_string()),
        });
        TensorInfo { name: "x".into(), dtype: DType::U8, dims: dims.collect(), batch_axis }
    }

    #[test]
    fn files_are_cut_along_the_batch_axis_and_filled_up() {
        // Two blocks of three rows of two elements, batched along axis 1.
        let array = Array { dtype: DType::U8, dims: vec![2, 3, 2], bytes: (0..12).collect() };
        let cut = cut(&array, &info(&["2", "batch", "2"], Some(1)), 2).unwrap();
        assert_eq!(cut.len(), 2);
        assert_eq!((&cut[0].dims[..], &cut[0].bytes[..]), (&[2, 2, 2][..], &[0, 1, 2, 3, 6, 7, 8, 9][..]));
        assert_eq!(cut[1].bytes, [4, 5, 0, 1, 10, 11, 6, 7]);
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused_with_what_would() {
        let array = Array { dtype: DType::U8, dims: vec![1, 3], bytes: vec![0; 3] };
        for dims in [&["batch", "4"][..], &["batch"], &["batch", "3", "1"]] {
            let error = cut(&array, &info(dims, Some(0)), 1).unwrap_err();
            assert!(error.contains("U8 [1, 3] does not fit input 'x', U8 ["), "{error}");
        }
        assert!(cut(&array, &info(&["batch", "width"], Some(0)), 1).is_ok());
    }

    #[test]
    fn inputs_are_made_from_the_signature_and_sizes() {
        let sizes = ["width=5".parse().unwrap(), "x:2=7".parse().unwrap()];
        let made = make(&info(&["batch", "width", ""], Some(0)), 2, &sizes).unwrap();
        assert_eq!(made.dims, [2, 5, 7]);
        assert_eq!(made.bytes, vec![1; 70]);
        let error = make(&info(&["batch", "height"], Some(0)), 1, &sizes).unwrap_err();
        assert!(error.contains("--shape height=SIZE"), "{error}");
    }
}
