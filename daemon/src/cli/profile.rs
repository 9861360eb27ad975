//! `rota profile`: how long batches of a model take here.

use super::output::{self, Table, ms, significant};
use super::progress::Progress;
use super::{Failure, Outcome};
use crate::background::{MAX_BATCH_DEFAULT, compile_options, hints};
use crate::clock::millis;
use crate::config::EngineName;
use crate::repository::{self, Settings};
use crate::serve::allowed_cores;
use rota_device::check::{self, Checked};
use rota_device::profile::{self as measuring, Budget, Point};
use rota_device::{Network, engine};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure how long batches of 1, 2, 4, … of a model take on this host
#[derive(clap::Args)]
#[command(before_help = "Example: rota profile models/digits/1/model.onnx --max-batch 16 --shape width=320")]
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
    /// Inference engine
    #[arg(long, value_enum, default_value = "auto")]
    engine: EngineName,
    /// Size of a dynamic dimension, by its name or by "input:axis"
    #[arg(long = "shape", value_name = "NAME=SIZE", value_parser = parse_size)]
    shapes: Vec<(String, u32)>,
    /// For programs
    #[arg(long)]
    json: bool,
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
    let threads = arguments.threads.unwrap_or(match arguments.cores.len() {
        0 => allowed_cores().len(),
        cores => cores,
    });
    pin(&arguments.cores)?;
    let opened = engine::open(&arguments.engine.choice())?;
    let options = compile_options(&settings, &arguments.cores, threads.max(1));
    let mut network = opened.engine.compile(&arguments.model, &options)?;
    let in_model = |error: String| -> Failure { format!("{}: {error}", arguments.model.display()).into() };
    let checked = check::check_batching(&mut *network, &hints(&settings)).map_err(|e| in_model(e.to_string()))?;
    let points = measure(&mut *network, &checked, &settings).map_err(|e| in_model(e.to_string()))?;
    let report = Report {
        model: arguments.model.clone(),
        engine: opened.engine.describe(),
        threads,
        cores: arguments.cores,
        sizes: checked.hints.sizes,
        finding: checked.finding,
        batches: points.iter().map(Measured::of).collect(),
    };
    if arguments.json {
        output::print_json(&report)?
    } else {
        output::print(&report.text())?
    }
    Ok(ExitCode::SUCCESS)
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
    fn a_size_is_a_name_and_a_number_above_zero() {
        assert_eq!(parse_size("x:2=48"), Ok(("x:2".to_string(), 48)));
        for wrong in ["width", "width=", "width=0", "width=-1", "width=4.5"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
