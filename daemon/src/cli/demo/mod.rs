//! `rota demo`: a daemon, real models, real answers, and load from separate processes, in about twenty seconds.

pub mod answers;
mod device;
mod load;
mod magika;
pub mod manifest;
mod ocr;
mod processes;

use super::{Failure, Outcome};
use manifest::Manifest;
use processes::{DaemonProcess, Workshop};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Serve real models, check their answers in words, and show them under load
#[derive(clap::Args)]
#[command(before_help = "Examples, in the project's folder; `make demo` builds it first:\n  \
    rota demo --seconds 20\n  rota demo ocr page.png\n  rota demo --device cuda")]
pub struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Folder with the models' manifests
    #[arg(long, value_name = "DIR", default_value = "models", global = true)]
    models: PathBuf,
    /// Length of the load
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Share of the device that the load aims at, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    load: u32,
    #[command(flatten)]
    device: device::DeviceArguments,
    /// Answers only, no load
    #[arg(long)]
    answers_only: bool,
}

/// A part of the demo, alone.
#[derive(clap::Subcommand)]
enum Part {
    Ocr(ocr::Arguments),
}

/// Whether the user wants it to end.
#[derive(Clone)]
pub struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What every part of the demo returns when it is cut short.
    pub fn check(&self) -> Result<(), Failure> {
        if self.is_set() { Err("interrupted".into()) } else { Ok(()) }
    }
}

pub fn run(arguments: Arguments) -> Outcome {
    let interrupted = Interrupted(Arc::default());
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&interrupted.0))?;
    }
    let manifest = find_manifest(&arguments.models)?;
    let device = arguments.device.settings()?;
    // Dropped in reverse: the daemon ends before its folder goes.
    let workshop = Workshop::new()?;
    let repository = manifest.folder.join(&manifest.repository);
    let page = match &arguments.part {
        Some(Part::Ocr(page)) => Some(ocr::Page::open(page, &manifest)?),
        None if ocr::is_possible(&manifest) => Some(ocr::Page::open(&Default::default(), &manifest)?),
        None => None,
    };
    let mut daemon = DaemonProcess::start(&workshop, &repository, &device)?;
    let done = show(&arguments, &manifest, page.as_ref(), &workshop, &mut daemon, &interrupted);
    daemon.stop();
    match done {
        Err(_) if interrupted.is_set() => {
            eprintln!("rota: interrupted; the daemon has stopped");
            Ok(ExitCode::SUCCESS)
        }
        done => done.map(|()| ExitCode::SUCCESS),
    }
}

fn show(
    arguments: &Arguments,
    manifest: &Manifest,
    page: Option<&ocr::Page>,
    workshop: &Workshop,
    daemon: &mut DaemonProcess,
    interrupted: &Interrupted,
) -> Result<(), Failure> {
    daemon.wait_until_loaded(interrupted)?;
    println!();
    if let (Some(page), Some(Part::Ocr(_))) = (page, &arguments.part) {
        return ocr::show(page, daemon.socket(), interrupted);
    }
    let shown = answers::show(manifest, daemon.socket(), interrupted)?;
    if let Some(page) = page {
        println!();
        ocr::show(page, daemon.socket(), interrupted)?;
    }
    if !arguments.answers_only {
        println!();
        let plan =
            load::Plan { length: Duration::from_secs(arguments.seconds), share: f64::from(arguments.load) / 100.0 };
        load::show(manifest, &plan, &shown.rooms, workshop, daemon.socket(), interrupted)?;
    }
    match shown.wrong {
        0 => Ok(()),
        n => Err(format!("{n} answer(s) were not what the models are known to give").into()),
    }
}

/// The fetched models, or the small ones that come with the project.
fn find_manifest(models: &Path) -> Result<Manifest, Failure> {
    let fetched = models.join("fetched/manifest.json");
    if fetched.exists() {
        return Ok(Manifest::read(&fetched)?);
    }
    let tiny = models.join("tiny/manifest.json");
    if !tiny.exists() {
        let text = "no manifest there: run it in the project's folder, or name its models folder with --models";
        return Err(format!("{}: {text}", models.display()).into());
    }
    println!(
        "the published models are not here (`python3 models/fetch.py` gets them): showing three small ones instead"
    );
    Ok(Manifest::read(&tiny)?)
}
