//! `rota profile`: how long batches of a model take here.

use super::infer::DeviceName;
use super::output::{self, Table, ms, significant};
use super::progress::Progress;
use super::{Failure, Outcome};
use crate::background::{MAX_BATCH_DEFAULT, compile_options, hints};
use crate::clock::millis;
use crate::config::{EngineName, PrecisionName};
use crate::repository::{self, Settings};
use crate::serve::allowed_cores;
use rota_device::check::{self, Checked};
use rota_device::cuda::CudaEngine;
use rota_device::profile::{self as measuring, Budget, Point};
use rota_device::{Engine, Network, engine};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Measure how long batches of 1, 2, 4, … of a model take on this host
#[derive(clap::Args)]
#[command(before_help = "Examples:
  rota profile models/digits/1/model.onnx --max-batch 16 --shape width=320
  rota profile models/digits/1/model.onnx --device cuda --toml >> gpu.toml")]
pub struct Arguments {
    /// An ONNX file; settings of its model's folder (model.toml) hold
    model: PathBuf,
    /// Largest batch [default: the settings', or 32]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_batch: Option<u32>,
    /// Threads of one batch [default: as many as cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Cores to run on, such as 0,1 [default: wherever the system puts it]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    cores: Vec<usize>,
    /// Where to run
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
    /// With --device cpu: inference engine [default: auto]
    #[arg(long, value_enum)]
    engine: Option<EngineName>,
    /// With --device cuda: in what numbers products are computed [default: fp32]
    #[arg(long, value_enum)]
    precision: Option<PrecisionName>,
    /// Size of a dynamic dimension, by its name or by "input:axis"
    #[arg(long = "shape", value_name = "NAME=SIZE", value_parser = parse_size)]
    shapes: Vec<(String, u32)>,
    /// For programs
    #[arg(long)]
    json: bool,
    /// As a [[profile]] for a device's `profiles` in the settings
    #[arg(long, conflicts_with = "json")]
    toml: bool,
}

#[derive(Serialize)]
struct Report {
    model: PathBuf,
    engine: String,
    threads: usize,
    cores: Vec<usize>,
    /// The dynamic dimensions as they were measured.
    sizes: BTreeMap<String, u32>,
    /// Why requests do not share batches; absent when they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<String>,
    batches: Vec<Measured>,
}

#[derive(Serialize)]
struct Measured {
    batch: u32,
    ms: f64,
    ms_p95: f64,
    ms_per_item: f64,
    items_per_s: f64,
    runs: u32,
}

pub(super) fn parse_size(text: &str) -> Result<(String, u32), String> {
    let (name, size) = text.split_once('=').ok_or("expected NAME=SIZE, such as width=320")?;
    let size = size.parse().ok().filter(|size| *size > 0).ok_or_else(|| format!("\"{size}\" is not a size"))?;
    Ok((name.to_string(), size))
}

pub fn run(arguments: Arguments) -> Outcome {
    let described = repository::describe_file(&arguments.model);
    let described = described.map_err(|problem| format!("{}: {}", problem.path.display(), problem.what))?;
    let mut settings = described.settings;
    settings.max_batch = arguments.max_batch.or(settings.max_batch);
    settings.shape.extend(arguments.shapes.iter().cloned());
    settings.precision = arguments.precision.or(settings.precision);
    let (engine, threads) = open(&arguments)?;
    let options = compile_options(&settings, &arguments.cores, threads);
    let mut network = engine.compile(&arguments.model, &options)?;
    let in_model = |error: String| -> Failure { format!("{}: {error}", arguments.model.display()).into() };
    let most = settings.max_batch.unwrap_or(MAX_BATCH_DEFAULT);
    let checked = check::check_up_to(most, &mut *network, &hints(&settings)).map_err(|e| in_model(e.to_string()))?;
    let points = measure(&mut *network, &checked, &settings).map_err(|e| in_model(e.to_string()))?;
    let report = Report {
        model: arguments.model.clone(),
        engine: engine.describe_with(&options),
        threads,
        cores: arguments.cores,
        sizes: checked.hints.sizes,
        finding: checked.finding,
        batches: points.iter().map(Measured::of).collect(),
    };
    if arguments.json {
        output::print_json(&report)?
    } else if arguments.toml {
        output::print(&report.toml())?
    } else {
        output::print(&report.text())?
    }
    Ok(ExitCode::SUCCESS)
}

/// What runs the model, and on how many threads.
fn open(arguments: &Arguments) -> Result<(Arc<dyn Engine>, usize), Failure> {
    match arguments.device {
        DeviceName::Cpu if arguments.precision.is_some() => Err("--precision is for GPUs: add --device cuda".into()),
        DeviceName::Cpu => {
            let threads = arguments.threads.unwrap_or(match arguments.cores.len() {
                0 => allowed_cores().len(),
                cores => cores,
            });
            pin(&arguments.cores)?;
            Ok((engine::open(&arguments.engine.unwrap_or_default().choice())?.engine, threads.max(1)))
        }
        DeviceName::Cuda
            if arguments.engine.is_some() || arguments.threads.is_some() || !arguments.cores.is_empty() =>
        {
            Err("--engine, --threads and --cores are for --device cpu".into())
        }
        DeviceName::Cuda => Ok((Arc::new(CudaEngine::open(0, arguments.precision.unwrap_or_default().into())?), 1)),
    }
}

/// The engine pins its own threads, and the first thread of a batch is ours.
fn pin(cores: &[usize]) -> Result<(), Failure> {
    let Some(&first) = cores.first() else { return Ok(()) };
    let allowed = allowed_cores();
    if let Some(core) = cores.iter().find(|core| !allowed.contains(core)) {
        return Err(format!("--cores: core {core} is not this process's; choose among {allowed:?}").into());
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(first);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| format!("--cores: core {first}: {error}"))?;
    Ok(())
}

fn measure(
    network: &mut dyn Network,
    checked: &Checked,
    settings: &Settings,
) -> Result<Vec<Point>, measuring::MeasureError> {
    let sizes = match network.signature().batches() {
        true => measuring::doubling(settings.max_batch.unwrap_or(MAX_BATCH_DEFAULT)),
        false => vec![1],
    };
    let progress = Progress::of_steps(sizes.len());
    let mut last = None;
    measuring::measure(network, &checked.hints, &sizes, Budget::default(), &mut |done| {
        if last.replace(done.step) != Some(done.step) {
            progress.step(done.step, &format!("batch of {}", done.batch));
        }
        progress.detail(done.step, &format!("batch of {}, {} ms, run {}", done.batch, ms(millis(done.took)), done.run));
    })
}

/// `<model>/<version>/model.onnx` is called by its folder, another file by itself.
fn model_name(file: &Path) -> String {
    let whole = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let version = whole.parent().filter(|folder| name(folder).is_some_and(|name| name.parse::<u64>().is_ok()));
    let folder = version.and_then(Path::parent).and_then(name);
    folder.or_else(|| whole.file_stem().map(|stem| stem.to_string_lossy().into_owned())).unwrap_or_default()
}

impl Measured {
    fn of(point: &Point) -> Measured {
        let (ms, items) = (millis(point.latency), f64::from(point.batch));
        Measured {
            batch: point.batch,
            ms,
            ms_p95: millis(point.p95),
            ms_per_item: ms / items,
            items_per_s: if ms > 0.0 { items * 1e3 / ms } else { 0.0 },
            runs: point.runs,
        }
    }
}

impl Report {
    /// For a device's profile file.
    fn toml(&self) -> String {
        let points: Vec<String> = self.batches.iter().map(|m| format!("{} = {:.6}", m.batch, m.ms)).collect();
        let model = toml::Value::String(model_name(&self.model));
        format!("[[profile]] # {}\nmodel = {model}\nbatch_ms = {{ {} }}\n", self.engine, points.join(", "))
    }

    fn text(&self) -> String {
        let mut table = Table::new(&["batch", "ms", "p95 ms", "ms/item", "items/s", "runs"]);
        for m in &self.batches {
            table.row(vec![
                m.batch.to_string(),
                ms(m.ms),
                ms(m.ms_p95),
                ms(m.ms_per_item),
                significant(m.items_per_s),
                m.runs.to_string(),
            ]);
        }
        let threads = if self.threads == 1 { "1 thread".to_string() } else { format!("{} threads", self.threads) };
        let mut text = format!("{}: {}, {threads}\n", self.model.display(), self.engine);
        if !self.sizes.is_empty() {
            let sizes: Vec<String> = self.sizes.iter().map(|(name, size)| format!("{name} = {size}")).collect();
            text.push_str(&format!("sizes: {}\n", sizes.join(", ")));
        }
        if let Some(finding) = &self.finding {
            text.push_str(&format!("{finding}\n"));
        }
        text + &table.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_its_folder_or_its_file() {
        let cases = [("repository/digits/3/model.onnx", "digits"), ("digits.onnx", "digits"), ("a/b/net.onnx", "net")];
        for (file, expected) in cases {
            assert_eq!(model_name(Path::new(file)), expected, "{file}");
        }
    }

    #[test]
    fn a_size_is_a_name_and_a_number_above_zero() {
        assert_eq!(parse_size("x:2=48"), Ok(("x:2".to_string(), 48)));
        for wrong in ["width", "width=", "width=0", "width=-1", "width=4.5"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
