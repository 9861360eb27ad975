//! Constants of a graph: an element type, dimensions, and the elements' bytes, which are slices of the file.

use crate::proto;
use bytes::{BufMut, Bytes, BytesMut};

/// A constant.
///
/// Invariant: `data` has exactly the bytes that `dtype` and `dims` ask for, row-major and little-endian, whichever field of the
/// file they came from; strings are each their length (u64) and their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub dtype: DType,
    pub dims: Vec<u64>,
    pub data: Bytes,
}

/// Element types, by their numbers in ONNX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DType(pub i32);

impl DType {
    pub const F32: DType = DType(1);
    pub const I32: DType = DType(6);
    pub const I64: DType = DType(7);
    pub const STRING: DType = DType(8);
    pub const BOOL: DType = DType(9);

    /// Bits of one element; `None` for strings and for numbers that ONNX does not have.
    pub fn bits(self) -> Option<u64> {
        Some(match self.0 {
            21..=23 => 4,
            2 | 3 | 9 | 17..=20 | 24 => 8,
            4 | 5 | 10 | 16 => 16,
            1 | 6 | 12 => 32,
            7 | 11 | 13 | 14 => 64,
            15 => 128,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        const NAMES: [&str; 25] = [
            "?",
            "f32",
            "u8",
            "i8",
            "u16",
            "i16",
            "i32",
            "i64",
            "string",
            "bool",
            "f16",
            "f64",
            "u32",
            "u64",
            "complex64",
            "complex128",
            "bf16",
            "f8e4m3fn",
            "f8e4m3fnuz",
            "f8e5m2",
            "f8e5m2fnuz",
            "u4",
            "i4",
            "f4e2m1",
            "f8e8m0",
        ];
        usize::try_from(self.0).ok().and_then(|at| NAMES.get(at)).copied().unwrap_or("?")
    }
}

impl Tensor {
    pub fn i64s(dims: Vec<u64>, values: &[i64]) -> Tensor {
        Tensor { dtype: DType::I64, dims, data: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }

    pub fn f32s(dims: Vec<u64>, values: &[f32]) -> Tensor {
        Tensor { dtype: DType::F32, dims, data: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }

    fn strings(dims: Vec<u64>, values: &[Bytes]) -> Tensor {
        let mut data = BytesMut::new();
        for value in values {
            data.put_u64_le(value.len() as u64);
            data.put_slice(value);
        }
        Tensor { dtype: DType::STRING, dims, data: data.freeze() }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// The elements of an integer tensor; `None` when it is none or has more than `most` of them.
    pub fn integers(&self, most: usize) -> Option<Vec<i64>> {
        if self.elements() > most as u64 {
            return None;
        }
        match self.dtype {
            DType::I64 => {
                Some(self.data.chunks_exact(8).filter_map(|c| c.try_into().ok()).map(i64::from_le_bytes).collect())
            }
            DType::I32 => Some(
                self.data
                    .chunks_exact(4)
                    .filter_map(|c| c.try_into().ok())
                    .map(i32::from_le_bytes)
                    .map(i64::from)
                    .collect(),
            ),
            _ => None,
        }
    }

    /// The elements of a f32 tensor of at most `most`.
    pub fn floats(&self, most: usize) -> Option<Vec<f32>> {
        let few = self.dtype == DType::F32 && self.elements() <= most as u64;
        few.then(|| self.data.chunks_exact(4).filter_map(|c| c.try_into().ok()).map(f32::from_le_bytes).collect())
    }

    /// The one element, of any numeric type, as a number.
    pub fn scalar(&self) -> Option<f64> {
        if self.elements() != 1 {
            return None;
        }
        self.integers(1).map(|v| v[0] as f64).or_else(|| self.floats(1).map(|v| f64::from(v[0])))
    }

    /// Checks a tensor of the file and takes its bytes, without a copy where they are raw. The error says what is wrong with it.
    pub(crate) fn from_proto(tensor: proto::TensorProto) -> Result<Tensor, String> {
        let external = tensor.data_location == Some(proto::tensor_proto::DataLocation::External as i32);
        if external || !tensor.external_data.is_empty() {
            return Err("keeps its data in another file; store the model with its weights inside".to_owned());
        }
        if tensor.segment.is_some() {
            return Err("is stored in segments, which is not supported".to_owned());
        }
        let dtype = DType(tensor.data_type.unwrap_or(0));
        let dim = |&dim: &i64| u64::try_from(dim).map_err(|_| format!("has a dimension of {dim}"));
        let dims = tensor.dims.iter().map(dim).collect::<Result<Vec<u64>, String>>()?;
        let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let elements = elements.ok_or_else(|| format!("has too many elements: {dims:?}"))?;
        if dtype == DType::STRING {
            let found = tensor.string_data.len() as u64;
            if found != elements {
                return Err(format!("has {found} strings, its dimensions {dims:?} ask for {elements}"));
            }
            return Ok(Tensor::strings(dims, &tensor.string_data));
        }
        let bits = dtype.bits().ok_or_else(|| format!("has element type {}, which ONNX does not have", dtype.0))?;
        let bytes = elements.checked_mul(bits).ok_or_else(|| format!("has too many elements: {dims:?}"))?.div_ceil(8);
        let data = match tensor.raw_data {
            Some(raw) if !raw.is_empty() => raw,
            _ => typed_data(dtype, &tensor),
        };
        if data.len() as u64 != bytes {
            let found = data.len();
            return Err(format!("has {found} bytes, {} with dimensions {dims:?} takes {bytes}", dtype.name()));
        }
        Ok(Tensor { dtype, dims, data })
    }

    pub(crate) fn to_proto(&self, name: &str) -> proto::TensorProto {
        let mut tensor = proto::TensorProto {
            name: Some(name.to_owned()),
            dims: self.dims.iter().map(|&dim| dim as i64).collect(),
            data_type: Some(self.dtype.0),
            ..Default::default()
        };
        if self.dtype == DType::STRING {
            let mut rest = self.data.clone();
            while rest.len() >= 8 {
                let mut length = rest.split_to(8);
                let bytes = usize::try_from(bytes::Buf::get_u64_le(&mut length)).unwrap_or(usize::MAX).min(rest.len());
                tensor.string_data.push(rest.split_to(bytes));
            }
        } else {
            tensor.raw_data = Some(self.data.clone());
        }
        tensor
    }
}

/// The elements' bytes from the typed field that ONNX has for them: narrow types lie in wider numbers.
fn typed_data(dtype: DType, tensor: &proto::TensorProto) -> Bytes {
    let words = &tensor.int32_data;
    match dtype.0 {
        1 | 14 => tensor.float_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        11 | 15 => tensor.double_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        7 => tensor.int64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        13 => tensor.uint64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        12 => tensor.uint64_data.iter().flat_map(|value| (*value as u32).to_le_bytes()).collect(),
        6 => words.iter().flat_map(|value| value.to_le_bytes()).collect(),
        4 | 5 | 10 | 16 => words.iter().flat_map(|value| (*value as u16).to_le_bytes()).collect(),
        _ => words.iter().map(|value| *value as u8).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_and_typed_fields_give_the_same_tensor() {
        let base = proto::TensorProto { dims: vec![2], ..Default::default() };
        let typed = [
            proto::TensorProto { data_type: Some(1), float_data: vec![1.5, -2.0], ..base.clone() },
            proto::TensorProto { data_type: Some(7), int64_data: vec![-1, 1 << 40], ..base.clone() },
            proto::TensorProto { data_type: Some(3), int32_data: vec![-1, 7], ..base.clone() },
            proto::TensorProto { data_type: Some(10), int32_data: vec![0x3c00, 0xc000], ..base.clone() },
            proto::TensorProto { data_type: Some(12), uint64_data: vec![1, u64::from(u32::MAX)], ..base.clone() },
        ];
        for tensor in typed {
            let read = Tensor::from_proto(tensor.clone()).unwrap();
            let raw = read.to_proto("w");
            assert!(raw.raw_data.is_some() && raw.float_data.is_empty());
            assert_eq!(Tensor::from_proto(raw).unwrap(), read);
        }
        let words = vec![Bytes::from_static(b"yes"), Bytes::new()];
        let strings = proto::TensorProto { data_type: Some(8), string_data: words.clone(), ..base };
        assert_eq!(Tensor::from_proto(strings).unwrap().to_proto("s").string_data, words);
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        let base = proto::TensorProto { data_type: Some(1), dims: vec![2], ..Default::default() };
        let cases = [
            (
                proto::TensorProto { float_data: vec![1.0], ..base.clone() },
                "has 4 bytes, f32 with dimensions [2] takes 8",
            ),
            (proto::TensorProto { dims: vec![-1], ..base.clone() }, "has a dimension of -1"),
            (proto::TensorProto { dims: vec![1 << 40, 1 << 40], ..base.clone() }, "too many elements"),
            (proto::TensorProto { data_type: Some(99), ..base.clone() }, "element type 99"),
            (proto::TensorProto { data_location: Some(1), ..base }, "another file"),
        ];
        for (tensor, expected) in cases {
            let error = Tensor::from_proto(tensor).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
