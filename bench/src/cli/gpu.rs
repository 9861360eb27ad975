//! `rota-bench gpu`

use super::Failure;
use crate::gpu::case::Scale;
use crate::gpu::lines::Writer;
use crate::gpu::report::Results;
use crate::gpu::{daemon, kernels, models, references};
use crate::{engine, process};
use clap::{Subcommand, ValueEnum};
use rota_device::cuda::Precision;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Measure kernels, models and the daemon on a GPU.
///
/// bench/gpu/run.sh does all parts within nine minutes. Each writes a file of JSON lines, `report` makes results of them.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Every kernel against its reference, and its time against the roofline
    Kernels(KernelsArguments),
    /// Write what the models have to answer, with an engine of this host; needs no GPU
    References(ReferencesArguments),
    /// Every model at every batch against the references, and its times
    Models(ModelsArguments),
    /// The daemon: goodput, overlap, loading beside serving, a prefix group
    Daemon(DaemonArguments),
    /// Make results.json and results.md of what lies in a folder
    Report(ReportArguments),
    /// Print where the stand-in driver is, for ROTA_CUDA_DRIVER; compiles it where it is not yet, with g++
    StandIn,
}

#[derive(clap::Args)]
struct KernelsArguments {
    /// The driver's number of the GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu: u32,
    /// Sizes that a stand-in driver computes in a moment
    #[arg(long)]
    small: bool,
    /// Leave out what takes more operations, which a stand-in driver would take long for
    #[arg(long, value_name = "N")]
    flops_max: Option<u64>,
    /// Where the lines go
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(clap::Args)]
struct ReferencesArguments {
    /// Folder of models: <model>/<version>/model.onnx; a manifest.json beside it names inputs
    #[arg(long, value_name = "DIR", default_value = "models/fetched/repository")]
    repository: PathBuf,
    /// What made inputs hold, where the model's settings do not say it: model:input=low..high
    #[arg(long = "range", value_name = "RANGE", value_parser = range)]
    ranges: Vec<(String, (f64, f64))>,
    /// Gets a folder for each model
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(clap::Args)]
struct ModelsArguments {
    /// The driver's number of the GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu: u32,
    /// Folder of models: <model>/<version>/model.onnx
    #[arg(long, value_name = "DIR")]
    repository: PathBuf,
    /// What `references` wrote
    #[arg(long, value_name = "DIR")]
    references: PathBuf,
    /// In what numbers products are computed
    #[arg(long = "precision", value_name = "P", value_enum, value_delimiter = ',', default_value = "fp32,tf32,fp16")]
    precisions: Vec<PrecisionName>,
    /// Largest batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    batch_max: u32,
    /// Runs of each that are timed, at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Where the lines go
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(clap::Args)]
struct DaemonArguments {
    /// The daemon's program [default: beside this one]
    #[arg(long, value_name = "PATH")]
    rota: Option<PathBuf>,
    /// Folder of models: <model>/<version>/model.onnx
    #[arg(long, value_name = "DIR")]
    repository: PathBuf,
    /// What `references` wrote
    #[arg(long, value_name = "DIR")]
    references: PathBuf,
    /// Models that share a trunk
    #[arg(long, value_name = "DIR")]
    heads: Option<PathBuf>,
    /// What `models` wrote on this GPU
    #[arg(long, value_name = "FILE")]
    models: Option<PathBuf>,
    /// Length of one window
    #[arg(long, value_name = "MS", default_value_t = 2500, value_parser = clap::value_parser!(u64).range(1..))]
    length_ms: u64,
    /// Factor of the models' SLOs, for a stand-in driver
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = factor)]
    slo_factor: f64,
    /// Where the lines go
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(clap::Args)]
struct ReportArguments {
    /// Holds what the parts wrote, and gets the results
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionName {
    Fp32,
    Tf32,
    Fp16,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Precision {
        match name {
            PrecisionName::Fp32 => Precision::Fp32,
            PrecisionName::Tf32 => Precision::Tf32,
            PrecisionName::Fp16 => Precision::Fp16,
        }
    }
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.part {
        Part::Kernels(arguments) => run_kernels(&arguments),
        Part::References(arguments) => write_references(&arguments),
        Part::Models(arguments) => run_models(arguments),
        Part::Daemon(arguments) => run_daemon(arguments),
        Part::Report(arguments) => report(&arguments),
        Part::StandIn => {
            println!("{}", rota_kernels::standin::library()?.display());
            Ok(())
        }
    }
}

fn run_kernels(arguments: &KernelsArguments) -> Result<(), Failure> {
    let scale = if arguments.small { Scale::Small } else { Scale::Full };
    let mut lines = Writer::create(&arguments.output)?;
    let settings = kernels::Settings { gpu: arguments.gpu, scale, flops_max: arguments.flops_max };
    let summary = kernels::run(settings, &mut lines, progress)?;
    println!("{} correct, {} wrong, {} not tried", summary.correct, summary.wrong.len(), summary.missing.len());
    let missing = summary.missing.iter().map(|name| format!("{name}: no case launches it"));
    verdict(summary.wrong.into_iter().chain(missing).collect())
}

fn write_references(arguments: &ReferencesArguments) -> Result<(), Failure> {
    let ranges: BTreeMap<String, (f64, f64)> = arguments.ranges.iter().cloned().collect();
    let inputs = |model: &str| engine::manifest_inputs(&arguments.repository, model);
    let written = references::write(&arguments.repository, &arguments.output, &inputs, &ranges, progress)?;
    for reference in written {
        let (model, items, engine) = (reference.model, reference.items, reference.engine);
        println!("{model}: {items} items, batches up to {}, by {engine}", reference.max_batch);
    }
    Ok(())
}

fn run_models(arguments: ModelsArguments) -> Result<(), Failure> {
    let mut lines = Writer::create(&arguments.output)?;
    let settings = models::Settings {
        gpu: arguments.gpu,
        repository: arguments.repository,
        references: arguments.references,
        precisions: arguments.precisions.into_iter().map(Precision::from).collect(),
        batch_max: arguments.batch_max,
        samples: arguments.samples,
        budget: Duration::from_secs(1),
    };
    let (correct, wrong) = models::run(&settings, &mut lines, progress)?;
    println!("{correct} correct, {} wrong", wrong.len());
    verdict(wrong)
}

fn run_daemon(arguments: DaemonArguments) -> Result<(), Failure> {
    let mut lines = Writer::create(&arguments.output)?;
    let settings = daemon::Settings {
        rota: process::program(arguments.rota)?,
        repository: arguments.repository,
        references: arguments.references,
        heads: arguments.heads,
        models: arguments.models,
        length: Duration::from_millis(arguments.length_ms),
        slo_factor: arguments.slo_factor,
        devices: "[[device]]\nkind = \"cuda\"".into(),
    };
    verdict(daemon::run(&settings, &mut lines, progress)?)
}

fn report(arguments: &ReportArguments) -> Result<(), Failure> {
    let results = Results::read(&arguments.folder)?;
    let page = results.markdown();
    std::fs::write(arguments.folder.join("results.json"), serde_json::to_string_pretty(&results)?)?;
    std::fs::write(arguments.folder.join("results.md"), &page)?;
    print!("{page}");
    Ok(())
}

fn progress(what: &str) {
    eprintln!("rota-bench: {what}");
}

/// What was wrong, as one message.
fn verdict(wrong: Vec<String>) -> Result<(), Failure> {
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("\nrota-bench: ").into()),
    }
}

fn factor(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|factor: &f64| (1e-3..=1e6).contains(factor)).ok_or_else(|| "a number above 0".into())
}

/// `model:input=low..high`
fn range(text: &str) -> Result<(String, (f64, f64)), String> {
    let parsed = || {
        let (name, range) = text.split_once('=')?;
        let (low, high) = range.split_once("..")?;
        let (low, high): (f64, f64) = (low.parse().ok()?, high.parse().ok()?);
        (name.contains(':') && low <= high).then(|| (name.to_owned(), (low, high)))
    };
    parsed().ok_or_else(|| "a range is model:input=low..high".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_name_a_model_and_an_input() {
        assert_eq!(range("magika:bytes=0..255").unwrap(), ("magika:bytes".into(), (0.0, 255.0)));
        for wrong in ["bytes=0..255", "magika:bytes", "magika:bytes=5..1", "magika:bytes=a..b"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }
}
