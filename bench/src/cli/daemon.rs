//! `rota-bench daemon`

use super::Failure;
use crate::{daemon, process};
use std::path::PathBuf;
use std::time::Duration;

/// Measure the whole path through a daemon whose device takes no time.
///
/// Starts a daemon of its own: round trip, requests per second, large inputs against memcpy, and what an idle daemon
/// costs. Example: `rota-bench daemon --rota target/release/rota`
#[derive(clap::Args)]
pub struct Arguments {
    /// The daemon's program [default: beside this one]
    #[arg(long, value_name = "PATH")]
    rota: Option<PathBuf>,
    /// Turns that each contender gets
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of one turn
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    round_ms: u64,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let length = Duration::from_millis(arguments.round_ms);
    let rota = process::program(arguments.rota)?;
    let measured = daemon::run(&rota, arguments.rounds, length, |what| eprintln!("rota-bench: {what}"))?;
    if arguments.json {
        println!("{}", serde_json::to_string(&measured)?);
    } else {
        measured.comparisons.iter().for_each(crate::rounds::Comparison::print);
        println!("idle with {} clients: {:.3} % of one core", daemon::CONNECTIONS, measured.idle_cpu_percent);
    }
    Ok(())
}
