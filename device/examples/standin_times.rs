//! What a model's kernels take on a named GPU at the least, as the stand-in driver reads it (`ROTA_STANDIN_TIMES`).
//!
//!     cargo run -p rota-device --example standin_times -- h100 model.onnx [items | name=size ...] > times
//!
//! Plans have 1, 2, 4 … items up to the largest batch; 1 and the sizes that are named are written.

use rota_device::cuda::lower::Options;
use rota_device::cuda::roofline::GPUS;
use rota_device::cuda::{Model, standin};
use rota_device::{CompileOptions, Hints};
use std::collections::BTreeSet;
use std::path::PathBuf;

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(file)) = (arguments.next(), arguments.next().map(PathBuf::from)) else {
        return Err("usage: standin_times GPU model.onnx [items | name=size ...]".into());
    };
    let known = GPUS.map(|gpu| gpu.name).join(", ");
    let gpu = GPUS.iter().find(|gpu| gpu.name == name).ok_or_else(|| format!("GPU {name} is not one of {known}"))?;
    let (mut batches, mut hints) = (BTreeSet::from([1]), Hints::default());
    for argument in arguments {
        match argument.split_once('=') {
            Some((name, size)) => drop(hints.sizes.insert(name.to_owned(), size.parse()?)),
            None => drop(batches.insert(argument.parse()?)),
        }
    }
    let options = Options { multiprocessors: gpu.multiprocessors, ..Options::default() };
    let model = Model::read(&file, &CompileOptions::default())?;
    let mut lines = BTreeSet::new();
    for items in batches {
        let program = model.program(items, &hints, options)?;
        lines.extend(program.steps.iter().map(|step| standin::time_line(&step.launch, gpu.time(step))));
    }
    lines.iter().for_each(|line| print!("{line}"));
    Ok(())
}
