//! `rota drain`

use super::connection::Connection;
use super::progress::Progress;
use super::{Outcome, output};
use std::process::ExitCode;

/// Stop admission; the daemon ends when all requests are answered
#[derive(clap::Args)]
#[command(before_help = "Example: rota drain")]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
}

pub fn run(arguments: Arguments) -> Outcome {
    let mut control = arguments.connection.control()?;
    let progress = Progress::waiting("draining");
    control.drain()?;
    drop(progress);
    output::print("drained; the daemon ends\n")?;
    Ok(ExitCode::SUCCESS)
}
