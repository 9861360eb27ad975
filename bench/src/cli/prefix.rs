//! `rota-bench prefix`

use super::Failure;
use crate::table::{Table, figure};
use crate::{prefix, process};
use std::path::PathBuf;
use std::time::Duration;

/// Measure what models that share a trunk save when they are served together.
///
/// Starts daemons of its own, with a cpu device of one core: the models together, each whole, one alone, none. Example:
/// `rota-bench prefix --repository models/fetched/heads`
#[derive(clap::Args)]
pub struct Arguments {
    /// Models that share a trunk
    #[arg(long, value_name = "DIR", default_value = "models/fetched/heads")]
    repository: PathBuf,
    /// How many of them
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
    let rota = process::program(arguments.rota)?;
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
