//! NumPy's `.npy` files: versions 1 to 3 of the format, little-endian, C order, the element types that networks have.
//!
//! Whatever else NumPy can store (Fortran order, big-endian numbers, strings, objects, records) is refused, with the call that
//! converts it.

use rota_device::{DType, HostTensor, Shape};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A file can't be read or written as a tensor. Nothing was changed, but that a file may be there in part after [`NpyError::Io`].
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    #[error("{file}: {error}")]
    Io { file: PathBuf, error: io::Error },
    /// What the file holds is not for us: its writer has to change it.
    #[error("{file}: {fault}")]
    Form { file: PathBuf, fault: Fault },
}

/// What is wrong with the bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("not a .npy file; write one with numpy.save")]
    Magic,
    #[error(".npy version {0}; versions 1 to 3 are read")]
    Version(u8),
    #[error("the file ends inside its header")]
    Truncated,
    #[error("the header is not what NumPy writes: {0}")]
    Header(String),
    #[error(
        "element type {0}; there are bool, u8 to u64, i8 to i64, f16, f32 and f64, little-endian: convert with array.astype"
    )]
    Descr(String),
    #[error("Fortran order; save numpy.ascontiguousarray(array)")]
    FortranOrder,
    #[error("{0} dimensions; at most 8 are carried")]
    Rank(usize),
    #[error("shape {shape:?} of {dtype} needs {needed} bytes, the file has {found}")]
    Size { shape: Vec<u32>, dtype: DType, needed: u64, found: u64 },
    #[error("shape {0:?} is too large")]
    TooLarge(Vec<u32>),
    /// NumPy itself has no such type.
    #[error("{0} has no .npy element type")]
    NoDescr(DType),
}

pub fn read(file: &Path) -> Result<HostTensor, NpyError> {
    let bytes = fs::read(file).map_err(|error| NpyError::Io { file: file.to_path_buf(), error })?;
    parse(&bytes).map_err(|fault| NpyError::Form { file: file.to_path_buf(), fault })
}

pub fn write(file: &Path, tensor: &HostTensor) -> Result<(), NpyError> {
    let bytes = encode(tensor).map_err(|fault| NpyError::Form { file: file.to_path_buf(), fault })?;
    fs::write(file, bytes).map_err(|error| NpyError::Io { file: file.to_path_buf(), error })
}

/// A tensor out of a whole file's bytes.
pub fn parse(bytes: &[u8]) -> Result<HostTensor, Fault> {
    let (header, data) = split(bytes)?;
    let header = Header::parse(header)?;
    if header.fortran_order {
        return Err(Fault::FortranOrder);
    }
    let dtype = dtype(&header.descr).ok_or(Fault::Descr(header.descr))?;
    let shape = Shape::new(&header.shape).ok_or(Fault::Rank(header.shape.len()))?;
    let needed = shape.elements().and_then(|n| n.checked_mul(dtype.bytes()));
    // Compared before anything is allocated: a header can claim any size.
    match needed {
        None => Err(Fault::TooLarge(header.shape)),
        Some(needed) if needed != data.len() => {
            Err(Fault::Size { shape: header.shape, dtype, needed: needed as u64, found: data.len() as u64 })
        }
        Some(_) => HostTensor::from_bytes(dtype, shape, data).ok_or(Fault::TooLarge(header.shape)),
    }
}

/// A whole file's bytes, version 1.
pub fn encode(tensor: &HostTensor) -> Result<Vec<u8>, Fault> {
    let descr = descr(tensor.dtype).ok_or(Fault::NoDescr(tensor.dtype))?;
    let dims: Vec<String> = tensor.shape.dims().iter().map(u32::to_string).collect();
    // A tuple of one has a comma behind it.
    let comma = if dims.len() == 1 { "," } else { "" };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", dims.join(", "));
    let total = (PREFIX_BYTES + header.len() + 1).next_multiple_of(ALIGN);
    header.extend(std::iter::repeat_n(' ', total - PREFIX_BYTES - header.len() - 1));
    header.push('\n');
    let length = u16::try_from(header.len()).expect("eight dimensions fill a few hundred bytes");
    let mut bytes = Vec::with_capacity(total + tensor.bytes.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[1, 0]);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&tensor.bytes);
    Ok(bytes)
}

const MAGIC: &[u8] = b"\x93NUMPY";
/// Magic, version and length of a version 1 file.
const PREFIX_BYTES: usize = 10;
/// Data starts at a multiple of this.
const ALIGN: usize = 64;

/// The header's text and the data behind it.
fn split(bytes: &[u8]) -> Result<(&str, &[u8]), Fault> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(Fault::Magic)?;
    let [major, _minor, rest @ ..] = rest else { return Err(Fault::Truncated) };
    let (length, rest) = match (major, rest) {
        (1, [a, b, rest @ ..]) => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        (2 | 3, [a, b, c, d, rest @ ..]) => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        (1..=3, _) => return Err(Fault::Truncated),
        (other, _) => return Err(Fault::Version(*other)),
    };
    let (header, data) = rest.split_at_checked(length).ok_or(Fault::Truncated)?;
    let header = std::str::from_utf8(header).map_err(|_| Fault::Header("not text".to_string()))?;
    Ok((header, data))
}

#[derive(Debug)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<u32>,
}

impl Header {
    /// A Python dictionary with exactly the keys that NumPy writes.
    fn parse(text: &str) -> Result<Header, Fault> {
        let mut scanner = Scanner { rest: text };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        scanner.expect('{')?;
        while !scanner.take('}') {
            let key = scanner.string()?;
            scanner.expect(':')?;
            match key {
                "descr" => descr = Some(scanner.descr()?),
                "fortran_order" => fortran_order = Some(scanner.boolean()?),
                "shape" => shape = Some(scanner.tuple()?),
                other => return Err(Fault::Header(format!("key '{other}' is unknown"))),
            }
            if !scanner.take(',') {
                scanner.expect('}')?;
                break;
            }
        }
        let missing = |key: &str| Fault::Header(format!("key '{key}' is missing"));
        Ok(Header {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// Reads Python literals from the front of `rest`.
struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn take(&mut self, wanted: char) -> bool {
        let after = self.rest.trim_start().strip_prefix(wanted);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<(), Fault> {
        if self.take(wanted) { Ok(()) } else { Err(self.unexpected(&format!("'{wanted}'"))) }
    }

    fn unexpected(&self, wanted: &str) -> Fault {
        let found: String = self.rest.trim_start().chars().take(20).collect();
        Fault::Header(format!("expected {wanted} at {:?}", found.trim_end()))
    }

    /// A string without escapes.
    fn string(&mut self) -> Result<&'a str, Fault> {
        let text = self.rest.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let inside = quote.and_then(|quote| text[1..].split_once(quote));
        let (string, rest) = inside.ok_or_else(|| self.unexpected("a string"))?;
        self.rest = rest;
        Ok(string)
    }

    /// A type's name; a list stands for a record type, which is refused by what is in it.
    fn descr(&mut self) -> Result<String, Fault> {
        if self.rest.trim_start().starts_with('[') {
            return Err(Fault::Descr("of a record".to_string()));
        }
        Ok(format!("'{}'", self.string()?))
    }

    fn boolean(&mut self) -> Result<bool, Fault> {
        let text = self.rest.trim_start();
        for (name, value) in [("True", true), ("False", false)] {
            if let Some(rest) = text.strip_prefix(name) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.unexpected("True or False"))
    }

    fn tuple(&mut self) -> Result<Vec<u32>, Fault> {
        self.expect('(')?;
        let mut numbers = Vec::new();
        while !self.take(')') {
            let text = self.rest.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let number = text[..end].parse().map_err(|_| self.unexpected("a size below 2^32"))?;
            numbers.push(number);
            self.rest = &text[end..];
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(numbers)
    }
}

fn dtype(quoted: &str) -> Option<DType> {
    let name = quoted.trim_matches('\'');
    DType::ALL.into_iter().find(|dtype| descr(*dtype) == Some(name))
}

fn descr(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::Bool => "|b1",
        DType::U8 => "|u1",
        DType::I8 => "|i1",
        DType::U16 => "<u2",
        DType::I16 => "<i2",
        DType::U32 => "<u4",
        DType::I32 => "<i4",
        DType::U64 => "<u8",
        DType::I64 => "<i8",
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::Bf16 => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: &[u8], header: &str, data: &[u8]) -> Vec<u8> {
        let length = header.len() as u32;
        let length =
            if version[0] == 1 { (length as u16).to_le_bytes().to_vec() } else { length.to_le_bytes().to_vec() };
        [MAGIC, version, &length, header.as_bytes(), data].concat()
    }

    #[test]
    fn every_type_and_rank_comes_back_as_it_was_written() {
        for dtype in DType::ALL.into_iter().filter(|dtype| *dtype != DType::Bf16) {
            for dims in [&[][..], &[3], &[2, 3], &[0, 5], &[1, 2, 1, 2, 1, 2, 1, 2]] {
                let mut tensor = HostTensor::zeroed(dtype, Shape::new(dims).unwrap()).unwrap();
                tensor.bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
                let bytes = encode(&tensor).unwrap();
                assert_eq!((bytes.len() - tensor.bytes.len()) % ALIGN, 0);
                assert_eq!(parse(&bytes).unwrap(), tensor);
            }
        }
        let bf16 = HostTensor::zeroed(DType::Bf16, Shape::new(&[1]).unwrap()).unwrap();
        assert_eq!(encode(&bf16), Err(Fault::NoDescr(DType::Bf16)));
    }

    #[test]
    fn what_numpy_writes_is_read_byte_for_byte() {
        // numpy.save of array([[1, 2], [3, 4]], dtype=int16), and the same header in version 2.
        let header = "{'descr': '<i2', 'fortran_order': False, 'shape': (2, 2), }          \n";
        let data = [1, 0, 2, 0, 3, 0, 4, 0];
        for version in [&[1, 0], &[2, 0], &[3, 0]] {
            let tensor = parse(&file(version, header, &data)).unwrap();
            assert_eq!(tensor, HostTensor::from_elements(&[2, 2], &[1i16, 2, 3, 4]).unwrap());
        }
        let vector = parse(&file(&[1, 0], "{'shape': (1,), 'descr': '|b1', 'fortran_order': False}", &[1])).unwrap();
        assert_eq!((vector.dtype, vector.shape.dims()), (DType::Bool, &[1][..]));
    }

    #[test]
    fn what_can_not_be_carried_is_refused_with_what_would_be_right() {
        let with = |header: &str| parse(&file(&[1, 0], header, &[0; 16])).unwrap_err().to_string();
        let cases = [
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (4,)}", "element type '>f4'; there are bool"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}", "element type '|O'"),
            ("{'descr': '<U4', 'fortran_order': False, 'shape': (4,)}", "astype"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,)}", "element type of a record"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}", "ascontiguousarray"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (5,)}", "needs 20 bytes, the file has 16"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 4)}", "9 dimensions"),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967295, 4294967295, 4294967295)}", "too large"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296,)}", "a size below 2^32"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-4,)}", "a size below 2^32"),
            ("{'descr': '<f4', 'shape': (4,)}", "key 'fortran_order' is missing"),
            ("{'descr': '<f4', 'fortran_order': maybe, 'shape': (4,)}", "expected True or False"),
            ("['descr']", "expected '{' at \"['descr']\""),
            ("{'descr': '<f4", "expected a string"),
            ("", "expected '{'"),
        ];
        for (header, expected) in cases {
            let said = with(header);
            assert!(said.contains(expected), "{header}\nsaid: {said}\nshould contain: {expected}");
        }
        assert_eq!(parse(b"PK\x03\x04"), Err(Fault::Magic));
        assert_eq!(parse(b"\x93NUMPY\x04\x00\x00\x00\x00\x00"), Err(Fault::Version(4)));
        assert_eq!(parse(b"\x93NUMPY"), Err(Fault::Truncated));
        assert_eq!(parse(b"\x93NUMPY\x01\x00\xff\xff{"), Err(Fault::Truncated));
    }

    #[test]
    fn no_cut_of_a_file_is_read_as_whole() {
        let whole = encode(&HostTensor::from_elements(&[2, 2], &[1f32, 2.0, 3.0, 4.0]).unwrap()).unwrap();
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end} bytes");
        }
    }
}
