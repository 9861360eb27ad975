//! `rota models`

use super::connection::Connection;
use super::{Outcome, output};
use std::process::ExitCode;

/// List the models that are served, with their inputs and outputs
#[derive(clap::Args)]
#[command(before_help = "Example: rota models")]
pub struct Arguments {
    /// For programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub fn run(arguments: Arguments) -> Outcome {
    let models = arguments.connection.control()?.models()?;
    if arguments.json {
        output::print_json(&models)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for model in &models {
        text.push_str(&output::model_line(model));
        text.push_str(&output::tensors_text(&model.inputs, &model.outputs));
    }
    if models.is_empty() {
        text.push_str("no model is served; `rota status` says which are being loaded or have failed\n");
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
