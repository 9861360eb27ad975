//! ONNX's own cases per operator (`make operators` writes them), on the stand-in driver: those that the cuda device can load have to give
//! what the case says. `cargo test -p rota-device --test operators -- --nocapture` prints what was skipped, and why.

mod common;

use rota_device::cuda::{CudaEngine, Precision, driver};
use rota_device::engine::{CompileOptions, Engine};
use rota_device::{DType, HostTensor, npy};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Cases that pass at the least; more do as operators are added.
const PASSED_MIN: usize = 800;
/// Relative to the largest number of an output: what sums of floats in another order come to.
const TOLERANCE: f64 = 1e-4;

/// Cases that are not held to what they say, and why.
const EXCEPTIONS: [(&str, &str); 3] = [
    ("test_averagepool_2d_ceil_last_window_starts_on_pad", "its expected numbers are written with four digits"),
    (
        "test_resize_downsample_scales_cubic_align_corners",
        "aligns with a fraction of a pixel; ONNX Runtime aligns whole pixels, and so do we",
    ),
    (
        "test_resize_downsample_scales_linear_align_corners",
        "aligns with a fraction of a pixel; ONNX Runtime aligns whole pixels, and so do we",
    ),
];

enum Verdict {
    Passed,
    /// Not something that the device takes: why.
    Skipped(String),
    Failed(String),
}

#[test]
fn every_case_of_a_supported_operator_gives_what_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/operators/cases");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("skipped: {} is not there; `make operators` writes it", folder.display());
        return;
    };
    let library = rota_kernels::standin::library().unwrap_or_else(|error| panic!("{error}"));
    driver::open_library(Some(&library)).unwrap();
    let engine = CudaEngine::open(0, Precision::Fp32).unwrap();
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    cases.sort();
    let (mut passed, mut failed) = (0, Vec::new());
    let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
    for case in &cases {
        match judge(&engine, case) {
            Verdict::Passed => passed += 1,
            Verdict::Skipped(why) => *skipped.entry(why).or_default() += 1,
            Verdict::Failed(why) => failed.push(format!("{}: {why}", case.file_name().unwrap().to_string_lossy())),
        }
    }
    for (why, count) in &skipped {
        println!("skipped {count}: {why}");
    }
    println!("{passed} passed, {} skipped, {} failed", skipped.values().sum::<usize>(), failed.len());
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    assert!(passed >= PASSED_MIN, "{passed} passed of {} cases", cases.len());
}

fn judge(engine: &CudaEngine, case: &Path) -> Verdict {
    let name = case.file_name().unwrap_or_default().to_string_lossy();
    if let Some((_, why)) = EXCEPTIONS.iter().find(|(case, _)| *case == name) {
        return Verdict::Skipped(format!("{name} {why}"));
    }
    if let Ok(why) = std::fs::read_to_string(case.join("skip")) {
        let kind = why.split(" is ").nth(1).or(why.split(" has ").nth(1)).unwrap_or(&why);
        return Verdict::Skipped(format!("a value is {kind}"));
    }
    let tensors = |role: &str| -> Result<Vec<HostTensor>, String> {
        let files = (0..).map(|at| case.join(format!("{role}_{at}.npy"))).take_while(|file| file.exists());
        files.map(|file| npy::read(&file).map_err(|error| error.to_string())).collect()
    };
    let (inputs, expected) = match (tensors("input"), tensors("output")) {
        (Ok(inputs), Ok(expected)) => (inputs, expected),
        (Err(error), _) | (_, Err(error)) => return Verdict::Failed(error),
    };
    let mut network = match engine.compile(&case.join("model.onnx"), &CompileOptions::default()) {
        Ok(network) => network,
        Err(error) => return Verdict::Skipped(reason(&error.to_string(), case)),
    };
    let found = match network.run(&inputs) {
        Ok(found) => found,
        Err(error) => return Verdict::Skipped(reason(&error.to_string(), case)),
    };
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        if (found.dtype, found.shape) != (expected.dtype, expected.shape) {
            let (a, b) = ((found.dtype, found.shape), (expected.dtype, expected.shape));
            return Verdict::Failed(format!("output {index} is {a:?}, not {b:?}"));
        }
        let worst = difference(found, expected);
        let tolerance = if expected.dtype == DType::F16 { 2e-3 } else { TOLERANCE };
        if worst > tolerance {
            return Verdict::Failed(format!("output {index} is {worst} of its range off"));
        }
    }
    Verdict::Passed
}

/// A refusal without the names that differ from case to case.
fn reason(text: &str, case: &Path) -> String {
    let text = text.replace(&format!("{}: ", case.join("model.onnx").display()), "");
    text.split('"').step_by(2).collect::<Vec<_>>().join("…")
}

fn difference(found: &HostTensor, expected: &HostTensor) -> f64 {
    let (found, expected) = (numbers(found), numbers(expected));
    let range = expected.iter().filter(|value| value.is_finite()).fold(0f64, |range, value| range.max(value.abs()));
    let each = found.iter().zip(&expected).map(|(a, b)| match a == b || (a.is_nan() && b.is_nan()) {
        true => 0.0,
        false if a.is_finite() && b.is_finite() => (a - b).abs() / range.max(1e-20),
        false => f64::INFINITY,
    });
    each.fold(0.0, f64::max)
}

fn numbers(tensor: &HostTensor) -> Vec<f64> {
    fn all<T: rota_device::host::Element + Copy>(tensor: &HostTensor, to: fn(T) -> f64) -> Vec<f64> {
        tensor.bytes.elements::<T>().iter().map(|&value| to(value)).collect()
    }
    match tensor.dtype {
        DType::Bool | DType::U8 => all::<u8>(tensor, f64::from),
        DType::I8 => all::<i8>(tensor, f64::from),
        DType::U16 => all::<u16>(tensor, f64::from),
        DType::I16 => all::<i16>(tensor, f64::from),
        DType::U32 => all::<u32>(tensor, f64::from),
        DType::I32 => all::<i32>(tensor, f64::from),
        DType::U64 => all::<u64>(tensor, |value| value as f64),
        DType::I64 => all::<i64>(tensor, |value| value as f64),
        DType::F16 => all::<u16>(tensor, |bits| f64::from(half::f16::from_bits(bits))),
        DType::Bf16 => all::<u16>(tensor, |bits| f64::from(half::bf16::from_bits(bits))),
        DType::F32 => all::<f32>(tensor, f64::from),
        DType::F64 => all::<f64>(tensor, |value| value),
    }
}
