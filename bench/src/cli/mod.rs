//! The command line: one table makes parser and help; each verb has its file.

mod daemon;
mod engine;
mod gpu;
mod ipc;
mod load;
mod prefix;
mod queries;
mod scheduler;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Loads a Rota daemon, and measures it.
///
/// Example: `rota-bench load --session digits,rate=500,slo_ms=20 --seconds 10`
#[derive(Parser)]
#[command(name = "rota-bench", version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Load(load::Arguments),
    Ipc(ipc::Arguments),
    Daemon(daemon::Arguments),
    Engine(engine::Arguments),
    Scheduler(scheduler::Arguments),
    Queries(queries::Arguments),
    Prefix(prefix::Arguments),
    Gpu(gpu::Arguments),
    #[command(hide = true)]
    IpcServer(crate::ipc::server::Arguments),
}

/// What a verb returns when it can't do its work: the one message that the user gets.
pub type Failure = Box<dyn std::error::Error>;

pub fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Load(arguments) => load::run(arguments),
        Verb::Daemon(arguments) => daemon::run(arguments),
        Verb::Engine(arguments) => engine::run(arguments),
        Verb::Scheduler(arguments) => scheduler::run(arguments),
        Verb::Queries(arguments) => queries::run(arguments),
        Verb::Prefix(arguments) => prefix::run(arguments),
        Verb::Gpu(arguments) => gpu::run(arguments),
        Verb::Ipc(arguments) => ipc::run(&arguments),
        Verb::IpcServer(arguments) => crate::ipc::server::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rota-bench: {error}");
            ExitCode::from(2)
        }
    }
}
