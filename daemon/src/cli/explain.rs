//! `rota explain`: what a GPU would be given to do for a batch of a model, and how long that takes at the least.

use super::output::{self, Table, significant};
use super::profile::parse_size;
use super::{Failure, Outcome};
use crate::background::{compile_options, hints};
use crate::config::PrecisionName;
use crate::repository;
use rota_device::cuda::lower::{Layout, Layouts, Options, Program};
use rota_device::cuda::roofline::{GPUS, GpuLimits};
use rota_device::cuda::{Model, Precision};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show the launches that a batch of a model takes on a GPU, against that GPU's limits; no GPU is needed
#[derive(clap::Args)]
#[command(before_help = "Example: rota explain models/digits/1/model.onnx --device h100 --batch 8 --shape width=320")]
pub struct Arguments {
    /// An ONNX file; settings of its model's folder (model.toml) hold
    model: PathBuf,
    /// Whose limits
    #[arg(long, value_name = "GPU", default_value = "h100", value_parser = GPUS.map(|gpu| gpu.name))]
    device: String,
    /// Items of the batch
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// In what numbers products are computed [default: as the model's settings say, else fp32]
    #[arg(long, value_enum)]
    precision: Option<PrecisionName>,
    /// How pictures lie between launches: as the compiler chooses, or one way throughout, to compare
    #[arg(long, value_enum, default_value = "auto")]
    layout: LayoutName,
    /// Size of a dynamic dimension, by its name or by "input:axis"
    #[arg(long = "shape", value_name = "NAME=SIZE", value_parser = parse_size)]
    shapes: Vec<(String, u32)>,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LayoutName {
    Auto,
    Nchw,
    Nhwc,
}

impl From<LayoutName> for Layouts {
    fn from(name: LayoutName) -> Layouts {
        match name {
            LayoutName::Auto => Layouts::Auto,
            LayoutName::Nchw => Layouts::Nchw,
            LayoutName::Nhwc => Layouts::Nhwc,
        }
    }
}

#[derive(Serialize)]
struct Report {
    model: PathBuf,
    gpu: &'static str,
    batch: u32,
    precision: &'static str,
    launches: Vec<Launch>,
    sum: Sum,
    /// With a launch for each node.
    unfused: Sum,
    weight_bytes: u64,
    /// Activations: what the plan takes, what it could not do with less than, and what it would take without reuse.
    arena_bytes: u64,
    arena_lower_bound_bytes: u64,
    arena_sum_bytes: u64,
}

#[derive(Serialize)]
struct Launch {
    node: String,
    kernel: &'static str,
    /// How what it writes lies.
    layout: &'static str,
    bytes: u64,
    flops: u64,
    blocks: u64,
    /// Of the multiprocessors' time until the busiest is done.
    busy: f64,
    roofline_us: f64,
    /// Of the sum.
    share: f64,
}

#[derive(Serialize)]
struct Sum {
    launches: usize,
    bytes: u64,
    flops: u64,
    roofline_us: f64,
}

impl Sum {
    fn of(program: &Program, gpu: &GpuLimits) -> Sum {
        let cost = program.cost();
        Sum {
            launches: program.steps.len(),
            bytes: cost.bytes_read + cost.bytes_written,
            flops: cost.flops,
            roofline_us: program.steps.iter().map(|step| gpu.time(step).as_secs_f64() * 1e6).sum(),
        }
    }
}

pub fn run(arguments: Arguments) -> Outcome {
    let described = repository::describe_file(&arguments.model);
    let described = described.map_err(|problem| format!("{}: {}", problem.path.display(), problem.what))?;
    let mut settings = described.settings;
    settings.shape.extend(arguments.shapes.iter().cloned());
    let model = Model::read(&arguments.model, &compile_options(&settings, &[], 1))?;
    let precision = Precision::from(arguments.precision.or(settings.precision).unwrap_or_default());
    let gpu = GPUS.iter().find(|gpu| gpu.name == arguments.device).ok_or("no such GPU")?;
    let lower = |fuse: bool| -> Result<Program, Failure> {
        let options = Options {
            fuse,
            precision,
            multiprocessors: gpu.multiprocessors,
            layout: arguments.layout.into(),
            ..Options::default()
        };
        let program = model.program(arguments.batch, &hints(&settings), options);
        program.map_err(|error| format!("{}: {error}", arguments.model.display()).into())
    };
    let (program, unfused) = (lower(true)?, lower(false)?);
    let sum = Sum::of(&program, gpu);
    let launch = |step: &rota_device::cuda::lower::program::Step| {
        let (cost, us) = (step.launch.cost, gpu.time(step).as_secs_f64() * 1e6);
        Launch {
            node: step.label.clone(),
            kernel: step.launch.kernel.name,
            layout: if step.layout == Layout::Nhwc { "nhwc" } else { "nchw" },
            bytes: cost.bytes_read + cost.bytes_written,
            flops: cost.flops,
            blocks: step.launch.blocks(),
            busy: gpu.busy(step.launch.blocks()),
            roofline_us: us,
            share: if sum.roofline_us > 0.0 { us / sum.roofline_us } else { 0.0 },
        }
    };
    let report = Report {
        model: arguments.model.clone(),
        gpu: gpu.full_name,
        batch: arguments.batch,
        precision: precision.name(),
        launches: program.steps.iter().map(launch).collect(),
        unfused: Sum::of(&unfused, gpu),
        weight_bytes: program.weight_bytes(),
        arena_bytes: program.arena.peak,
        arena_lower_bound_bytes: program.arena.lower_bound,
        arena_sum_bytes: program.arena.sum,
        sum,
    };
    if arguments.json {
        output::print_json(&report)?
    } else {
        output::print(&report.text())?
    }
    Ok(ExitCode::SUCCESS)
}

/// Longer names of nodes are cut.
const NODE_CHARS_MAX: usize = 48;

impl Report {
    fn text(&self) -> String {
        let mut table = Table::new(&["launch", "kernel", "layout", "MB", "Mflop", "blocks", "busy", "us", "share"]);
        for launch in &self.launches {
            let node: String = launch.node.chars().take(NODE_CHARS_MAX).collect();
            let kernel = launch.kernel.trim_start_matches("rota_").to_owned();
            let (bytes, flops) = (launch.bytes as f64 / 1e6, launch.flops as f64 / 1e6);
            let percent = |share: f64, places: usize| format!("{:.places$}%", share * 100.0);
            table.row(vec![
                node,
                kernel,
                launch.layout.to_owned(),
                significant(bytes),
                significant(flops),
                launch.blocks.to_string(),
                percent(launch.busy, 0),
                significant(launch.roofline_us),
                percent(launch.share, 1),
            ]);
        }
        let sum = |sum: &Sum| {
            let (bytes, flops) = (sum.bytes as f64 / 1e6, sum.flops as f64 / 1e6);
            let (bytes, flops) = (significant(bytes), significant(flops));
            format!("{} launches, {bytes} MB, {flops} Mflop, {} us", sum.launches, significant(sum.roofline_us))
        };
        format!(
            "{}: a batch of {} on {}, {}; times are what its limits allow at the least, not run on a GPU\n{}\
            in all: {}\nwithout fusion: {}\n\
            weights {}; activations {} of at least {}, {} without reuse\n",
            self.model.display(),
            self.batch,
            self.gpu,
            self.precision,
            table.text(),
            sum(&self.sum),
            sum(&self.unfused),
            output::bytes(self.weight_bytes),
            output::bytes(self.arena_bytes),
            output::bytes(self.arena_lower_bound_bytes),
            output::bytes(self.arena_sum_bytes),
        )
    }
}
