//! Every model at every batch against its reference, and timed by the GPU's clock.

use super::lines::{self, Line, Writer};
use super::references::{self, Reference};
use super::{Failure, Machine, median, microseconds};
use rota_device::cuda::measure::{BatchTime, Measured};
use rota_device::cuda::{CudaEngine, Precision};
use rota_device::{CompileOptions, DType, HostTensor};
use rota_kernels::Math;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    pub gpu: u32,
    /// Holds `<model>/<version>/model.onnx`.
    pub repository: PathBuf,
    pub references: PathBuf,
    pub precisions: Vec<Precision>,
    /// Batches stop here, or at what the model takes.
    pub batch_max: u32,
    pub samples: u32,
    /// For one model at one batch, without its preparation.
    pub budget: Duration,
}

/// Runs them all; returns what was wrong, in words, and how many were right.
pub fn run(
    settings: &Settings,
    lines: &mut Writer,
    mut progress: impl FnMut(&str),
) -> Result<(usize, Vec<String>), Failure> {
    let references = references::read_all(&settings.references)?;
    let (mut correct, mut wrong) = (0, Vec::new());
    for (number, &precision) in settings.precisions.iter().enumerate() {
        let engine = CudaEngine::open(settings.gpu, precision)?;
        let machine = Machine::new(engine.info());
        if number == 0 {
            lines.write(&Line::Machine(machine.clone()))?;
        }
        if math(precision).capability() > machine.compute_capability {
            let why = format!("needs compute capability {:?}", math(precision).capability());
            lines.write(&Line::Skipped { what: format!("models in {}", name(precision)), why })?;
            continue;
        }
        for (reference, folder) in &references {
            progress(&format!("{} in {}", reference.model, name(precision)));
            for batch in batches(reference.max_batch.min(settings.batch_max)) {
                let what = format!("{} in {}, batch {batch}", reference.model, name(precision));
                match one(settings, &engine, &machine, reference, folder, (precision, batch)) {
                    Ok(line) => {
                        match line.correct {
                            true => correct += 1,
                            false => wrong.push(format!("{what}: off by {:?} of the output's range", line.worst)),
                        }
                        lines.write(&Line::Model(line))?;
                    }
                    Err(error) => {
                        wrong.push(format!("{what}: {error}"));
                        lines.write(&Line::Skipped { what, why: error.to_string() })?;
                    }
                }
            }
        }
    }
    lines.write(&Line::End { part: "models".into() })?;
    Ok((correct, wrong))
}

fn one(
    settings: &Settings,
    engine: &CudaEngine,
    machine: &Machine,
    reference: &Reference,
    folder: &Path,
    (precision, batch): (Precision, u32),
) -> Result<lines::Model, Failure> {
    let model = settings.repository.join(&reference.model);
    let (_, file) = references::newest(&model)?.ok_or_else(|| format!("{}: no model.onnx", model.display()))?;
    let options = CompileOptions { batch_symbol: reference.batch_symbol.clone(), ..CompileOptions::default() };
    let [inputs, expected] = reference.batch(folder, batch)?;
    let measured = engine.measure(&file, &options, &inputs, settings.samples, settings.budget)?;
    let worst = worst(&measured.outputs, &expected);
    let time = |part: fn(&BatchTime) -> Duration| -> f64 {
        let samples: Vec<Duration> = measured.samples.iter().map(part).collect();
        median(&samples).map_or(0.0, microseconds)
    };
    let Measured { launches, cost, bytes_in, bytes_out, prepared_in, .. } = measured;
    Ok(lines::Model {
        model: reference.model.clone(),
        precision: name(precision).into(),
        batch,
        worst: worst.is_finite().then_some(worst),
        correct: worst <= tolerance(precision),
        launches,
        bytes: cost.bytes_read + cost.bytes_written,
        flops: cost.flops,
        bytes_in,
        bytes_out,
        copy_in_us: time(|sample| sample.copy_in),
        execute_us: time(|sample| sample.execute),
        copy_out_us: time(|sample| sample.copy_out),
        roofline_us: machine.roofline(cost, math(precision)).map(|(time, _)| microseconds(time)),
        prepared_ms: prepared_in.as_secs_f64() * 1e3,
    })
}

/// 1, 2, 4, … and the largest.
pub fn batches(max: u32) -> Vec<u32> {
    let mut all: Vec<u32> = (0..u32::BITS).map(|bit| 1 << bit).take_while(|&batch| batch < max).collect();
    all.push(max.max(1));
    all
}

/// The largest error of any output, relative to that output's range; infinite where one is another kind of tensor.
fn worst(found: &[HostTensor], expected: &[HostTensor]) -> f64 {
    match found.len() == expected.len() {
        true => found.iter().zip(expected).map(|(found, expected)| difference(found, expected)).fold(0.0, f64::max),
        false => f64::INFINITY,
    }
}

fn difference(found: &HostTensor, expected: &HostTensor) -> f64 {
    if (found.dtype, found.shape) != (expected.dtype, expected.shape) {
        return f64::INFINITY;
    }
    if found.dtype != DType::F32 {
        return if *found.bytes == *expected.bytes { 0.0 } else { f64::INFINITY };
    }
    let (found, expected) = (found.bytes.elements::<f32>(), expected.bytes.elements::<f32>());
    let range = expected.iter().fold(0_f64, |range, &value| range.max(f64::from(value).abs())).max(1e-20);
    let error = |(&found, &expected): (&f32, &f32)| {
        let error = (f64::from(found) - f64::from(expected)).abs() / range;
        if error.is_nan() { f64::INFINITY } else { error }
    };
    found.iter().zip(expected).map(error).fold(0.0, f64::max)
}

/// Of an output's range.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 => 1e-4,
        Precision::Tf32 | Precision::Fp16 => 1e-2,
    }
}

fn math(precision: Precision) -> Math {
    match precision {
        Precision::Fp32 => Math::F32,
        Precision::Tf32 => Math::Tf32,
        Precision::Fp16 => Math::F16,
    }
}

fn name(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "fp32",
        Precision::Tf32 => "tf32",
        Precision::Fp16 => "fp16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_double_up_to_the_largest() {
        assert_eq!(batches(1), [1]);
        assert_eq!(batches(6), [1, 2, 4, 6]);
        assert_eq!(batches(8), [1, 2, 4, 8]);
    }

    #[test]
    fn an_error_is_relative_to_the_range_and_another_shape_is_infinitely_wrong() {
        let tensor = |values: &[f32]| HostTensor::from_elements(&[values.len() as u32], values).unwrap();
        let expected = [tensor(&[0.0, -10.0])];
        assert_eq!(worst(&[tensor(&[1.0, -10.0])], &expected), 0.1);
        assert_eq!(worst(&[tensor(&[f32::NAN, -10.0])], &expected), f64::INFINITY);
        assert_eq!(worst(&[tensor(&[0.0])], &expected), f64::INFINITY);
        assert_eq!(worst(&[], &expected), f64::INFINITY);
    }
}
