//! `rota-bench ipc`

use super::Failure;
use crate::ipc;
use std::time::Duration;

/// Compare Rota's ring with other ways between processes.
///
/// Round trips spinning and sleeping, throughput, large tensors; next to Unix sockets and TCP, and with the cargo feature
/// `peers` to gRPC and iceoryx2. Example: `rota-bench ipc --rounds 15`
#[derive(clap::Args)]
pub struct Arguments {
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

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let length = Duration::from_millis(arguments.round_ms);
    let compared = ipc::run(arguments.rounds, length, |what| eprintln!("rota-bench: {what}"))?;
    if arguments.json {
        println!("{}", serde_json::json!({ "comparisons": compared }));
    } else {
        compared.iter().for_each(crate::rounds::Comparison::print);
    }
    Ok(())
}
