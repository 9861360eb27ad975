//! `rota-bench engine`

use super::Failure;
use crate::{engine, process};
use std::path::PathBuf;
use std::time::Duration;

/// Measure what serving costs on top of the engine.
///
/// A saturated session of a daemon of its own, against the same engine, model and batch in a bare loop. Example:
/// `rota-bench engine --repository models/fetched/repository`
#[derive(clap::Args)]
pub struct Arguments {
    /// The daemon's program [default: beside this one]
    #[arg(long, value_name = "PATH")]
    rota: Option<PathBuf>,
    /// Folder of models: <model>/<version>/model.onnx
    #[arg(long, value_name = "DIR", default_value = "models/fetched/repository")]
    repository: PathBuf,
    /// What to measure [default: silero-vad, magika and text-orientation]
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// Turns that each contender gets
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of one turn
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    round_ms: u64,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let models = if arguments.models.is_empty() {
        ["silero-vad", "magika", "text-orientation"].map(String::from).to_vec()
    } else {
        arguments.models
    };
    let settings = engine::Settings {
        rota: process::program(arguments.rota)?,
        repository: arguments.repository,
        models,
        rounds: arguments.rounds,
        length: Duration::from_millis(arguments.round_ms),
    };
    let compared = engine::run(&settings, |what| eprintln!("rota-bench: {what}"))?;
    if arguments.json {
        println!("{}", serde_json::json!({ "comparisons": compared }));
    } else {
        compared.iter().for_each(crate::rounds::Comparison::print);
    }
    Ok(())
}
