//! `rota serve`

use super::Outcome;
use crate::config::Config;
use crate::serve::Daemon;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Serve models until SIGTERM
#[derive(clap::Args)]
#[command(before_help = "Example: rota serve --repository models --socket /tmp/rota.sock")]
pub struct Arguments {
    /// Folder of models: <model>/<version>/model.onnx
    #[arg(long, value_name = "DIR")]
    repository: Option<PathBuf>,
    /// Where clients connect [default: $ROTA_SOCKET, $XDG_RUNTIME_DIR/rota.sock or /run/rota/rota.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Settings (TOML); flags come before them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long the poller looks for work before it sleeps
    #[arg(long, value_name = "MICROSECONDS")]
    spin_us: Option<u64>,
    /// Serve every model whole, also those that share a leading part with others
    #[arg(long)]
    no_prefix: bool,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

pub fn run(arguments: Arguments) -> Outcome {
    let filter = EnvFilter::try_from_env("ROTA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    log.with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).init();
    if arguments.die_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    }
    let mut config = match &arguments.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    config.repository = arguments.repository.or(config.repository);
    config.socket = arguments.socket.or(config.socket);
    config.spin_us = arguments.spin_us.unwrap_or(config.spin_us);
    config.prefix &= !arguments.no_prefix;
    // Before any thread: a signal that comes during the start must not be lost.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let daemon = Daemon::start(&config)?;
    tracing::info!(socket = %daemon.socket().display(), "listening");
    let stop = daemon.stopper();
    std::thread::spawn(move || signals.forever().for_each(|_| stop.stop()));
    daemon.join()?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
