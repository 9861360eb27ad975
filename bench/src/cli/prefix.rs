//! `rota-bench prefix`

use super::Failure;
use super::scheduler::read;
use crate::prefix::emulated::{self, Emulated};
use crate::rounds::Comparison;
use crate::table::{Table, figure};
use crate::{prefix, process};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Measure what models that share a trunk save when they are served together.
///
/// Starts daemons of its own, with a cpu device of one core: the models together, each whole, one alone, none. With --emulated,
/// an emulated device instead, on which models are as fast as the profiles of a workload file. Examples:
/// `rota-bench prefix --repository models/fetched/heads`,
/// `rota-bench prefix --emulated sim/workloads/titanx.toml`
#[derive(clap::Args)]
pub struct Arguments {
    /// Models that share a trunk
    #[arg(long, value_name = "DIR", default_value = "models/fetched/heads")]
    repository: PathBuf,
    /// Emulate models of each profile in this workload file, and measure goodput
    #[arg(long, value_name = "FILE", conflicts_with = "repository")]
    emulated: Option<PathBuf>,
    /// Emulated: share of a model's time that it has for itself
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = share)]
    suffix: f64,
    /// Emulated: within what time a request is to be answered
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    slo_ms: u64,
    /// How many models
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=8))]
    models: u32,
    /// The daemon's program [default: beside this one]
    #[arg(long, value_name = "PATH")]
    rota: Option<PathBuf>,
    /// Turns that each contender gets
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of one turn
    #[arg(long, value_name = "MS", default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..))]
    round_ms: u64,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let length = Duration::from_millis(arguments.round_ms);
    let rota = process::program(arguments.rota.clone())?;
    if let Some(file) = &arguments.emulated {
        return run_emulated(&rota, file, &arguments);
    }
    let (count, progress) = (arguments.models as usize, |what: &str| eprintln!("rota-bench: {what}"));
    let measured = prefix::run(&rota, &arguments.repository, count, arguments.rounds, length, progress)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    println!("{}\n", measured.models.join(", "));
    measured.comparisons.iter().for_each(crate::rounds::Comparison::print);
    println!("resident memory, MB");
    let mut table = Table::new(["", "resident", "above empty", "to one model's"]);
    for row in &measured.memory {
        let cells = [row.resident_mb, row.above_empty_mb, row.ratio].map(figure);
        table.line([format!("  {}", row.name)].into_iter().chain(cells).collect());
    }
    table.print();
    Ok(())
}

fn run_emulated(rota: &Path, file: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let workload = read(file, 1.0, None)?;
    let slo = Duration::from_millis(arguments.slo_ms);
    let emulated = Emulated { variants: arguments.models as usize, suffix: arguments.suffix, slo };
    let (rounds, length) = (arguments.rounds, Duration::from_millis(arguments.round_ms));
    let comparisons = emulated::run(rota, &workload, emulated, rounds, length, |what| eprintln!("rota-bench: {what}"))?;
    if arguments.json {
        println!("{}", serde_json::to_string(&comparisons)?);
        return Ok(());
    }
    println!(
        "{} models whose own part takes {} % of their time, SLO {} ms, one device\n",
        emulated.variants,
        100.0 * emulated.suffix,
        arguments.slo_ms
    );
    comparisons.iter().for_each(Comparison::print);
    Ok(())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to less than 1".into())
}
