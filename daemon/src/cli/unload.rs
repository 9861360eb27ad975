//! `rota unload`

use super::connection::Connection;
use super::progress::Progress;
use super::{Outcome, output};
use std::process::ExitCode;

/// Take a model out of service, once its requests are answered
#[derive(clap::Args)]
#[command(before_help = "Example: rota unload digits --version 1")]
pub struct Arguments {
    /// Name of the model
    model: String,
    /// Version to unload [default: all]
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    #[command(flatten)]
    connection: Connection,
}

pub fn run(arguments: Arguments) -> Outcome {
    let Arguments { model, version, connection } = arguments;
    let mut control = connection.control()?;
    let progress = Progress::waiting(&format!("unloading {model}"));
    control.unload(&model, version)?;
    drop(progress);
    output::print(&format!("{model} is unloaded\n"))?;
    Ok(ExitCode::SUCCESS)
}
