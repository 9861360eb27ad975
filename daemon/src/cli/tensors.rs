//! Tensors on the command line: `[NAME=]FILE.npy`, matched with what a model has, and shown in short.

use super::Failure;
use half::{bf16, f16};
use rota_device::npy;
use rota_device::{DType, HostTensor};
use std::convert::Infallible;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A file for an input or output, whose name may be left out where it is clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: Option<String>,
    pub file: PathBuf,
}

impl FromStr for Named {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Named, Infallible> {
        Ok(match text.split_once('=') {
            Some((name, file)) => Named { name: Some(name.to_string()), file: file.into() },
            None => Named { name: None, file: text.into() },
        })
    }
}

/// An input or output of the model, for messages.
#[derive(Clone, Debug)]
pub struct Declared {
    pub name: String,
    pub dtype: DType,
}

/// The tensors of `given` in the order of the model's inputs.
pub fn inputs(model: &str, declared: &[Declared], given: &[Named]) -> Result<Vec<HostTensor>, Failure> {
    let files = assign_inputs(model, declared, given)?;
    files.into_iter().zip(declared).map(|(file, input)| read_as(file, input)).collect()
}

fn assign_inputs<'a>(model: &str, declared: &[Declared], given: &'a [Named]) -> Result<Vec<&'a Path>, Failure> {
    let mut files = vec![None; declared.len()];
    for named in given {
        let index = match &named.name {
            Some(name) => find(model, "input", declared, name)?,
            None if declared.len() == 1 => 0,
            None => {
                let file = named.file.display();
                let names = names(declared);
                return Err(format!("{file}: which input is it? --input NAME={file}; {model} has {names}").into());
            }
        };
        if files[index].replace(&*named.file).is_some() {
            return Err(format!("input \"{}\" is given twice", declared[index].name).into());
        }
    }
    let missing = files.iter().zip(declared).filter(|(file, _)| file.is_none());
    let missing: Vec<&str> = missing.map(|(_, input)| input.name.as_str()).collect();
    if !missing.is_empty() {
        return Err(format!("{model} needs an --input NAME=FILE.npy for {}", missing.join(", ")).into());
    }
    Ok(files.into_iter().flatten().collect())
}

fn read_as(file: &Path, input: &Declared) -> Result<HostTensor, Failure> {
    let tensor = npy::read(file)?;
    if tensor.dtype != input.dtype {
        let (file, name) = (file.display(), &input.name);
        let wanted = format!("input \"{name}\" is {}", input.dtype);
        let what = match numpy_name(input.dtype) {
            Some(numpy) => format!("{wanted}, the file holds {}; save array.astype(\"{numpy}\")", tensor.dtype),
            None => format!("{wanted}, which no .npy file holds"),
        };
        return Err(format!("{file}: {what}").into());
    }
    Ok(tensor)
}

/// By output of the model: the file that it goes to. Files without a name take the outputs in order.
pub fn assign_outputs<'a>(
    model: &str,
    declared: &[Declared],
    given: &'a [Named],
) -> Result<Vec<Option<&'a Path>>, Failure> {
    let mut files = vec![None; declared.len()];
    for (place, named) in given.iter().enumerate() {
        let index = match &named.name {
            Some(name) => find(model, "output", declared, name)?,
            None if place < declared.len() => place,
            None => {
                let (file, count) = (named.file.display(), declared.len());
                return Err(format!("{file}: {model} has no more outputs than {count}: {}", names(declared)).into());
            }
        };
        if files[index].replace(&*named.file).is_some() {
            return Err(format!("output \"{}\" is given twice", declared[index].name).into());
        }
    }
    Ok(files)
}

fn find(model: &str, role: &str, declared: &[Declared], name: &str) -> Result<usize, Failure> {
    let found = declared.iter().position(|tensor| tensor.name == name);
    found.ok_or_else(|| format!("{model} has no {role} \"{name}\"; it has {}", names(declared)).into())
}

fn names(declared: &[Declared]) -> String {
    declared.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn numpy_name(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::Bool => "bool",
        DType::U8 => "uint8",
        DType::I8 => "int8",
        DType::U16 => "uint16",
        DType::I16 => "int16",
        DType::U32 => "uint32",
        DType::I32 => "int32",
        DType::U64 => "uint64",
        DType::I64 => "int64",
        DType::F16 => "float16",
        DType::F32 => "float32",
        DType::F64 => "float64",
        DType::Bf16 => return None,
    })
}

/// The first values, and how many more there are.
pub fn summary(tensor: &HostTensor) -> String {
    fn first<T: Copy, D: Display>(values: &[T], show: impl Fn(T) -> D) -> String {
        let shown: Vec<String> = values.iter().take(SHOWN_MAX).map(|&value| show(value).to_string()).collect();
        match values.len().saturating_sub(SHOWN_MAX) {
            0 => shown.join(" "),
            more => format!("{} … and {more} more", shown.join(" ")),
        }
    }
    let bytes = &tensor.bytes;
    match tensor.dtype {
        DType::Bool => first(bytes, |byte| byte != 0),
        DType::U8 => first(bytes, |value| value),
        DType::I8 => first(bytes.elements::<i8>(), |value| value),
        DType::U16 => first(bytes.elements::<u16>(), |value| value),
        DType::I16 => first(bytes.elements::<i16>(), |value| value),
        DType::U32 => first(bytes.elements::<u32>(), |value| value),
        DType::I32 => first(bytes.elements::<i32>(), |value| value),
        DType::U64 => first(bytes.elements::<u64>(), |value| value),
        DType::I64 => first(bytes.elements::<i64>(), |value| value),
        DType::F16 => first(bytes.elements::<u16>(), |bits| float(f16::from_bits(bits).to_f64())),
        DType::Bf16 => first(bytes.elements::<u16>(), |bits| float(bf16::from_bits(bits).to_f64())),
        DType::F32 => first(bytes.elements::<f32>(), |value| float(value.into())),
        DType::F64 => first(bytes.elements::<f64>(), float),
    }
}

const SHOWN_MAX: usize = 8;

/// Five digits: to look at, not to compute with.
fn float(value: f64) -> String {
    let size = value.abs();
    if value != 0.0 && size.is_finite() && !(1e-3..1e6).contains(&size) {
        return format!("{value:.4e}");
    }
    let text = format!("{value:.5}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rota_device::Shape;

    fn declared(names: &[&str]) -> Vec<Declared> {
        names.iter().map(|name| Declared { name: name.to_string(), dtype: DType::F32 }).collect()
    }

    fn named(texts: &[&str]) -> Vec<Named> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn inputs_are_found_by_name_and_a_single_one_without() {
        let two = declared(&["ids", "mask"]);
        let cases = [
            (&two[..1], &["x.npy"][..], Ok(vec!["x.npy"])),
            (&two, &["mask=m.npy", "ids=i.npy"], Ok(vec!["i.npy", "m.npy"])),
            (&two, &["i.npy", "m.npy"], Err("i.npy: which input is it? --input NAME=i.npy; net has ids, mask")),
            (&two, &["ids=i.npy"], Err("net needs an --input NAME=FILE.npy for mask")),
            (&two, &["ids=i.npy", "ids=j.npy"], Err("input \"ids\" is given twice")),
            (&two, &["idx=i.npy"], Err("net has no input \"idx\"; it has ids, mask")),
            (&[], &[], Ok(vec![])),
        ];
        for (declared, given, expected) in cases {
            let given = named(given);
            let files = assign_inputs("net", declared, &given).map_err(|error| error.to_string());
            let expected = expected.map(|files| files.into_iter().map(Path::new).collect::<Vec<_>>());
            assert_eq!(files, expected.map_err(str::to_string));
        }
    }

    #[test]
    fn outputs_without_a_name_are_taken_in_order() {
        let two = declared(&["boxes", "scores"]);
        let files = |given: &[&str]| -> Result<Vec<Option<PathBuf>>, String> {
            let given = named(given);
            let files = assign_outputs("net", &two, &given).map_err(|error| error.to_string())?;
            Ok(files.into_iter().map(|file| file.map(Path::to_path_buf)).collect())
        };
        assert_eq!(files(&["a", "b"]).unwrap(), [Some("a".into()), Some("b".into())]);
        assert_eq!(files(&["scores=a"]).unwrap(), [None, Some("a".into())]);
        assert_eq!(files(&[]).unwrap(), [None, None]);
        assert_eq!(files(&["scores=a", "b"]).unwrap_err(), "output \"scores\" is given twice");
        assert!(files(&["a", "b", "c"]).unwrap_err().contains("no more outputs than 2: boxes, scores"));
    }

    #[test]
    fn a_summary_shows_the_first_values() {
        let small = HostTensor::from_elements(&[3], &[1.5f32, -2.0, 3.0]).unwrap();
        assert_eq!(summary(&small), "1.5 -2 3");
        let wide = [0.0, 1e-9, -0.001, 1234567.0, 0.333333333, f64::NAN, f64::INFINITY];
        let wide = HostTensor::from_elements(&[7], &wide).unwrap();
        assert_eq!(summary(&wide), "0 1.0000e-9 -0.001 1.2346e6 0.33333 NaN inf");
        let half = HostTensor::from_bytes(DType::F16, Shape::new(&[2]).unwrap(), &[0, 0x3c, 0, 0xc0]).unwrap();
        assert_eq!(summary(&half), "1 -2");
        let large = HostTensor::from_elements(&[20], &[7i64; 20]).unwrap();
        assert_eq!(summary(&large), "7 7 7 7 7 7 7 7 … and 12 more");
    }
}
