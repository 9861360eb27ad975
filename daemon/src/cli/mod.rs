//! The command line: one table makes parser and help; each verb has its file.

mod check;
mod connection;
pub mod demo;
mod doctor;
mod drain;
mod explain;
mod graph;
mod infer;
mod load;
mod models;
mod output;
mod plan;
mod profile;
mod progress;
mod serve;
mod sim;
mod status;
mod tensors;
mod unload;
mod workload;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Serves many networks on one host, each request inside its latency objective.
#[derive(Parser)]
#[command(name = "rota", version, max_term_width = 110, arg_required_else_help = true)]
#[command(before_help = "Example:
  rota serve --repository models                           # in one terminal
  rota status                                              # in another
  rota infer digits --input image.npy --output scores.npy")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Demo(demo::Arguments),
    Serve(serve::Arguments),
    Status(status::Arguments),
    Models(models::Arguments),
    Infer(infer::Arguments),
    Load(load::Arguments),
    Unload(unload::Arguments),
    Drain(drain::Arguments),
    Check(check::Arguments),
    Profile(profile::Arguments),
    Explain(explain::Arguments),
    Plan(plan::Arguments),
    Sim(Box<sim::Arguments>),
    Graph(graph::Arguments),
    Doctor(doctor::Arguments),
}

/// What a verb returns when it can't do its work: the one message that the user gets.
pub type Failure = Box<dyn std::error::Error>;

/// How a verb ended: exit code 1 when it did its work and the answer is no.
pub type Outcome = Result<ExitCode, Failure>;

const NEGATIVE: u8 = 1;
const FAILED: u8 = 2;

pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Demo(arguments) => demo::run(arguments),
        Verb::Serve(arguments) => serve::run(arguments),
        Verb::Status(arguments) => status::run(arguments),
        Verb::Models(arguments) => models::run(arguments),
        Verb::Infer(arguments) => infer::run(arguments),
        Verb::Load(arguments) => load::run(arguments),
        Verb::Unload(arguments) => unload::run(arguments),
        Verb::Drain(arguments) => drain::run(arguments),
        Verb::Check(arguments) => check::run(arguments),
        Verb::Profile(arguments) => profile::run(arguments),
        Verb::Explain(arguments) => explain::run(arguments),
        Verb::Plan(arguments) => plan::run(arguments),
        Verb::Sim(arguments) => sim::run(&arguments),
        Verb::Graph(arguments) => graph::run(&arguments),
        Verb::Doctor(arguments) => doctor::run(arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("rota: {}", output::one_line(&error.to_string()));
        ExitCode::from(FAILED)
    })
}
