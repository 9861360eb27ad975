//! `rota check`: what a daemon would serve of a repository, and what is wrong with the rest.

use super::output::{self, one_line};
use super::progress::Progress;
use super::{NEGATIVE, Outcome};
use crate::background::{MAX_BATCH_DEFAULT, compile_options, hints};
use crate::config::EngineName;
use crate::model::tensor_info;
use crate::repository::{self, Entry, Problem};
use crate::serve::allowed_cores;
use rota_device::{Engine, check, engine};
use rota_ipc::control::TensorInfo;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Load every model of a repository as a daemon would, and say what is wrong
#[derive(clap::Args)]
#[command(before_help = "Example: rota check models")]
pub struct Arguments {
    /// Folder of models: <model>/<version>/model.onnx
    repository: PathBuf,
    /// For programs
    #[arg(long)]
    json: bool,
    /// Inference engine
    #[arg(long, value_enum, default_value = "auto")]
    engine: EngineName,
}

#[derive(Serialize)]
struct Report {
    engine: String,
    served: Vec<Served>,
    problems: Vec<Said>,
    warnings: Vec<Said>,
}

#[derive(Serialize)]
struct Served {
    name: String,
    version: u64,
    file: PathBuf,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    /// Why its requests do not share batches; absent when they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<String>,
}

#[derive(Serialize)]
struct Said {
    path: PathBuf,
    what: String,
}

pub fn run(arguments: Arguments) -> Outcome {
    let path = &arguments.repository;
    let scan = repository::scan(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let opened = engine::open(&arguments.engine.choice())?;
    let said = |problem: Problem| Said { path: problem.path, what: problem.what };
    let mut report = Report {
        engine: opened.engine.describe(),
        served: Vec::new(),
        problems: scan.problems.into_iter().map(said).collect(),
        warnings: scan.warnings.into_iter().map(said).collect(),
    };
    let progress = Progress::of_steps(scan.entries.len());
    for (index, entry) in scan.entries.iter().enumerate() {
        progress.step(index, &format!("{} version {}", entry.name, entry.version));
        match examine(&*opened.engine, entry) {
            Ok(served) => report.served.push(served),
            Err(what) => report.problems.push(Said { path: entry.file.clone(), what: one_line(&what) }),
        }
    }
    drop(progress);
    let nothing = report.served.is_empty() && report.problems.is_empty();
    if arguments.json {
        output::print_json(&report)?;
    } else if nothing {
        let path = path.display();
        output::print(&format!("{path}: no model; expected {path}/<model>/<version number>/model.onnx\n"))?;
    } else {
        output::print(&report.text())?;
    }
    let sound = report.problems.is_empty() && !nothing;
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(NEGATIVE) })
}

fn examine(engine: &dyn Engine, entry: &Entry) -> Result<Served, String> {
    let options = compile_options(&entry.settings, &[], allowed_cores().len());
    let without_file = |text: String| match text.strip_prefix(&format!("{}: ", entry.file.display())) {
        Some(rest) => rest.to_string(),
        None => text,
    };
    let compiled = engine.compile(&entry.file, &options);
    let mut network = compiled.map_err(|error| without_file(error.to_string()))?;
    let most = entry.settings.max_batch.unwrap_or(MAX_BATCH_DEFAULT);
    let checked =
        check::check_up_to(most, &mut *network, &hints(&entry.settings)).map_err(|error| error.to_string())?;
    Ok(Served {
        name: entry.name.clone(),
        version: entry.version,
        file: entry.file.clone(),
        inputs: checked.signature.inputs.iter().map(tensor_info).collect(),
        outputs: checked.signature.outputs.iter().map(tensor_info).collect(),
        finding: checked.finding,
    })
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        for model in &self.served {
            let ok = console::style("ok  ").green();
            let _ = writeln!(text, "{ok} {} version {}", console::style(&model.name).bold(), model.version);
            text.push_str(&output::tensors_text(&model.inputs, &model.outputs));
            if let Some(finding) = &model.finding {
                let _ = writeln!(text, "    {finding}");
            }
        }
        for (label, said) in
            [(console::style("warn").yellow(), &self.warnings), (console::style("bad ").red(), &self.problems)]
        {
            for Said { path, what } in said {
                let _ = writeln!(text, "{label} {}: {}", path.display(), one_line(what));
            }
        }
        let (good, bad) = (self.served.len(), self.problems.len());
        let _ = writeln!(text, "{good} served, {bad} not, with {}", self.engine);
        text
    }
}
