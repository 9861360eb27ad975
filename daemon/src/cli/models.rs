//! `rota models`

use super::connection::Connection;
use super::{Outcome, output};
use rota_ipc::control::ModelInfo;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;

/// List the models that are served, with their inputs and outputs, and what they share
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
    text.push_str(&shared_text(&models));
    if models.is_empty() {
        text.push_str("no model is served; `rota status` says which are being loaded or have failed\n");
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What models share, a group a paragraph.
fn shared_text(models: &[ModelInfo]) -> String {
    let mut text = String::new();
    let (mut told, mut told_stacks) = (BTreeSet::new(), BTreeSet::new());
    for group in models.iter().filter_map(|model| model.group.as_ref()) {
        for shared in &group.shared {
            if !told.insert((group.id, &shared.models)) {
                continue;
            }
            let whole = shared.models.len() == models.iter().filter(|other| is_in(other, group.id)).count();
            let time = match whole {
                true => format!(", {:.0} % of their time", group.shared_time * 100.0),
                false => String::new(),
            };
            let (names, size) = (shared.models.join(", "), output::bytes(shared.weight_bytes));
            let indent = if whole { "" } else { "  " };
            let _ = writeln!(text, "{indent}{names} share {size}{time}, up to {}", shared.cut.join(", "));
        }
        if !group.stacked.is_empty() && told_stacks.insert((group.id, &group.stacked)) {
            let _ = writeln!(text, "  what {} have behind it can run as one", group.stacked.join(", "));
        }
    }
    text
}

fn is_in(model: &ModelInfo, group: u32) -> bool {
    model.group.as_ref().is_some_and(|other| other.id == group)
}
