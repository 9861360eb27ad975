//! The command line: one table makes parser and help; each verb has its file.

mod demo;
mod serve;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Serves many networks on one host, each request inside its latency objective.
///
/// Example: `rota serve --repository models` in one terminal, `rota status` in another.
#[derive(Parser)]
#[command(name = "rota", version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Demo(demo::Arguments),
    Serve(serve::Arguments),
}

/// What a verb returns when it can't do its work: the one message that the user gets.
pub type Failure = Box<dyn std::error::Error>;

pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.verb {
        Verb::Demo(arguments) => demo::run(arguments),
        Verb::Serve(arguments) => serve::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rota: {error}");
            ExitCode::from(2)
        }
    }
}
