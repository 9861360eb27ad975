//! `rota load`

use super::connection::Connection;
use super::progress::Progress;
use super::{Outcome, output};
use std::process::ExitCode;

/// Load a model of the daemon's repository
#[derive(clap::Args)]
#[command(before_help = "Example: rota load digits --version 2")]
pub struct Arguments {
    /// Name of the model's folder in the repository
    model: String,
    /// Version to load [default: the newest that its settings serve]
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    #[command(flatten)]
    connection: Connection,
}

pub fn run(arguments: Arguments) -> Outcome {
    let Arguments { model, version, connection } = arguments;
    let mut control = connection.control()?;
    let progress = Progress::waiting(&format!("loading {model}; its first time takes longer, to measure it"));
    control.load(&model, version)?;
    drop(progress);
    let loaded = control.models()?.into_iter().filter(|info| info.name == model);
    let loaded = loaded.filter(|info| version.is_none_or(|v| v == info.version)).max_by_key(|info| info.version);
    // It may have been unloaded again meanwhile.
    output::print(&loaded.map_or("loaded\n".to_string(), |info| output::model_line(&info)))?;
    Ok(ExitCode::SUCCESS)
}
