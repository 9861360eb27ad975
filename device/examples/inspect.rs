//! What this host's engines make of a model: its signature, whether it batches, how long batches take.
//!
//!     cargo run --release -p rota-device --example inspect -- model.onnx [largest batch] [name=size | input=low..high ...]

use rota_device::check::check_batching;
use rota_device::engine::{self, CompileOptions, EngineChoice};
use rota_device::profile::{Budget, doubling, measure};
use rota_device::{Dim, Hints, TensorSpec};
use std::path::{Path, PathBuf};

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let file = PathBuf::from(
        arguments.next().ok_or("usage: inspect model.onnx [largest batch] [name=size | input=low..high ...]")?,
    );
    let (mut largest, mut hints) = (8, Hints::default());
    for argument in arguments {
        match argument.split_once('=') {
            Some((name, value)) => match value.split_once("..") {
                Some((low, high)) => drop(hints.ranges.insert(name.to_owned(), (low.parse()?, high.parse()?))),
                None => drop(hints.sizes.insert(name.to_owned(), value.parse()?)),
            },
            None => largest = argument.parse()?,
        }
    }
    for choice in [EngineChoice::OnnxRuntime(None), EngineChoice::Rten] {
        let result = inspect(&choice, &file, largest, &hints);
        result.unwrap_or_else(|error| println!("  {error}"));
    }
    Ok(())
}

fn inspect(choice: &EngineChoice, file: &Path, largest: u32, hints: &Hints) -> Result<(), AnyError> {
    let engine = engine::open(choice)?.engine;
    println!("{}", engine.describe());
    let mut network = engine.compile(file, &CompileOptions { threads: 1, ..Default::default() })?;
    for spec in network.signature().inputs.iter().chain(&network.signature().outputs) {
        println!("  {}", tensor(spec));
    }
    let checked = check_batching(&mut *network, hints)?;
    println!("  checked at {:?}: {}", checked.hints.sizes, checked.finding.as_deref().unwrap_or("batches"));
    if let Some(remark) = &checked.remark {
        println!("  {remark}");
    }
    for spec in &checked.signature.outputs {
        println!("  {}", tensor(spec));
    }
    for point in measure(&mut *network, &checked.hints, &doubling(largest), Budget::default(), &mut |_| {})? {
        println!("  batch {:3}: {:?}, p95 {:?} ({} runs)", point.batch, point.latency, point.p95, point.runs);
    }
    Ok(())
}

fn tensor(spec: &TensorSpec) -> String {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(size) => size.to_string(),
        Dim::Dynamic(name) => format!("'{name}'"),
    };
    let dims: Vec<String> = spec.dims.iter().map(dim).collect();
    let axis = spec.batch_axis.map_or("no batch axis".into(), |axis| format!("batch axis {axis}"));
    format!("{} {} [{}] {axis}", spec.name, spec.dtype, dims.join(", "))
}
