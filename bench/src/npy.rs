//! NumPy's array files: one dense tensor, read whole.

use rota_ipc::wire::DType;
use std::path::{Path, PathBuf};

/// A dense row-major tensor as it lay in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub dtype: DType,
    /// Outermost first.
    pub dims: Vec<u32>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

/// A file that can't be used. It is the caller's to replace.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    #[error("{file}: {error}")]
    Io { file: PathBuf, error: std::io::Error },
    #[error("{file}: {text}")]
    Form { file: PathBuf, text: String },
}

/// Reads versions 1 to 3 of the format; elements must be little-endian and in C order.
pub fn read(file: &Path) -> Result<Array, NpyError> {
    let bytes = std::fs::read(file).map_err(|error| NpyError::Io { file: file.to_owned(), error })?;
    parse(&bytes).map_err(|text| NpyError::Form { file: file.to_owned(), text })
}

fn parse(bytes: &[u8]) -> Result<Array, String> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("it is no .npy file")?;
    let cut = "its header is cut";
    let (length, rest) = match rest {
        [1, _, low, high, rest @ ..] => (usize::from(u16::from_le_bytes([*low, *high])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        [major, ..] => return Err(format!("its version is {major}; 1 to 3 are read")),
        [] => return Err(cut.into()),
    };
    let (header, data) = rest.split_at_checked(length).ok_or(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
    let descr = field(header, "descr").ok_or("its header has no 'descr'")?;
    let descr = descr.strip_prefix('\'').and_then(|d| d.split('\'').next()).ok_or("its elements are records")?;
    let dtype = dtype(descr).ok_or_else(|| format!("its elements are '{descr}', which no tensor has"))?;
    if !field(header, "fortran_order").is_some_and(|order| order.starts_with("False")) {
        return Err("it is in Fortran order; save it with numpy.ascontiguousarray".into());
    }
    let shape = field(header, "shape").and_then(|s| s.strip_prefix('(')).and_then(|s| s.split(')').next());
    let sizes = shape.ok_or("its header has no 'shape'")?.split(',').map(str::trim).filter(|size| !size.is_empty());
    let dims: Vec<u32> = sizes.map(str::parse).collect::<Result<_, _>>().map_err(|_| "its shape has no such sizes")?;
    let wanted = dims.iter().try_fold(dtype.bytes(), |product, &dim| product.checked_mul(dim as usize));
    if wanted != Some(data.len()) {
        return Err(format!("{dims:?} of {dtype:?} are not {} bytes", data.len()));
    }
    Ok(Array { dtype, dims, bytes: data.to_vec() })
}

/// What follows `'name':` in the header, which is a Python dictionary of three fixed keys.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let (_, value) = header.split_once(&format!("'{name}':"))?;
    Some(value.trim_start())
}

fn dtype(descr: &str) -> Option<DType> {
    Some(match descr {
        "|b1" => DType::Bool,
        "|u1" => DType::U8,
        "|i1" => DType::I8,
        "<u2" => DType::U16,
        "<i2" => DType::I16,
        "<u4" => DType::U32,
        "<i4" => DType::I32,
        "<u8" => DType::U64,
        "<i8" => DType::I64,
        "<f2" => DType::F16,
        "<f4" => DType::F32,
        "<f8" => DType::F64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn an_array_is_read_whole() {
        let bytes = file("{'descr': '<i4', 'fortran_order': False, 'shape': (2, 1), }\n", &[1, 0, 0, 0, 2, 0, 0, 0]);
        let array = parse(&bytes).unwrap();
        assert_eq!((array.dtype, array.dims), (DType::I32, vec![2, 1]));
        assert_eq!(array.bytes, [1, 0, 0, 0, 2, 0, 0, 0]);
        let scalar = file("{'descr': '|u1', 'fortran_order': False, 'shape': (), }", &[7]);
        assert!(parse(&scalar).unwrap().dims.is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let header =
            |descr, order, shape| format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}");
        let cases = [
            (b"PNG".to_vec(), "no .npy file"),
            (b"\x93NUMPY\x01\x00\xff\xff{".to_vec(), "cut"),
            (file(&header("'<c8'", "False", "(1,)"), &[0; 8]), "'<c8', which no tensor has"),
            (file(&header("'>f4'", "False", "(1,)"), &[0; 4]), "'>f4'"),
            (file(&header("'<f4'", "True", "(1,)"), &[0; 4]), "Fortran"),
            (file(&header("'<f4'", "False", "(3,)"), &[0; 4]), "[3] of F32 are not 4 bytes"),
            (file(&header("'<f4'", "False", "(-3,)"), &[0; 4]), "no such sizes"),
            (file(&header("[('a', '<f4')]", "False", "(1,)"), &[0; 4]), "records"),
        ];
        for (bytes, expected) in cases {
            let error = parse(&bytes).unwrap_err();
            assert!(error.contains(expected), "{error}\nshould contain: {expected}");
        }
    }
}
