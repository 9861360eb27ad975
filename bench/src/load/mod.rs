//! The load generator: drives sessions of a running daemon and measures from the client's side.
//!
//! An open loop sends at times that were fixed beforehand, however slow the answers come, and measures each latency from the
//! moment at which the request should have been sent: a daemon that stalls is charged with every request that the stall held up
//! (no coordinated omission). What the generator itself could not send in time is counted and shown.

pub mod arrivals;
pub mod connect;
pub mod driver;
pub mod inputs;
pub mod processes;
pub mod report;
pub mod rooms;
pub mod spec;
pub mod tally;

use crate::npy::NpyError;
use arrivals::{Part, Pattern, Trace};
use driver::{Driver, Window};
use report::Outcome;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use spec::{SessionSpec, Size};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What to offer, to whom, for how long.
#[derive(Clone, Debug)]
pub struct Options {
    pub socket: PathBuf,
    pub sessions: Vec<SessionSpec>,
    /// Sizes of the dimensions that the models leave open.
    pub sizes: Vec<Size>,
    pub offer: Offer,
    pub window: Window,
    pub seed: u64,
    /// Never sleep: looks at the clock and the ring all the time.
    pub spin: bool,
    /// How long the client library polls before it sleeps.
    pub client_spin: Duration,
    /// Most requests in flight of one session and process in an open loop.
    pub in_flight_max: u32,
    /// What the requests of an open loop may take of shared memory, per process.
    pub arena_bytes: usize,
}

/// How requests follow each other.
#[derive(Clone, Debug)]
pub enum Offer {
    /// This many in flight, per session and process.
    Closed(u32),
    Arrivals(Pattern),
    Trace(Trace),
}

/// Why a load can't be run, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Client(#[from] rota_ipc::client::Error),
    #[error(transparent)]
    Npy(#[from] NpyError),
    #[error("{file}: {text}", file = file.display())]
    Input { file: PathBuf, text: String },
    /// The session's inputs or outputs are not known well enough to make requests.
    #[error("model {model}: {text}")]
    Session { model: String, text: String },
    #[error("session {model} has no rate: give --session {model},rate=N, or --closed N")]
    NoRate { model: String },
    #[error("{requests} requests in flight are more than the {most} of one connection; use more --processes")]
    InFlight { requests: usize, most: u32 },
    #[error("a load process: {0}")]
    Process(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What a load came to. Also what a process tells the one that started it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub seconds: f64,
    pub sessions: Vec<Outcome>,
    /// Why the load ended before its time, when the daemon was the reason.
    pub broken: Option<String>,
}

/// Offers this process's part of a load. `ready` is called when everything is connected, and the load starts when it returns.
/// `stop` ends it early; what was measured by then is reported.
pub fn run_part(
    options: &Options,
    part: Part,
    stop: &AtomicBool,
    ready: impl FnOnce() -> Result<(), LoadError>,
) -> Result<Measured, LoadError> {
    let mut connected = connect::connect(options, part)?;
    // The kernel may otherwise let a timer lie 50 µs; a failure costs only that.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZero::new(1));
    ready()?;
    let (lanes, flights) = (connected.lanes, connected.flights);
    let driver = Driver::new(&mut connected.client, lanes, flights, options.window, options.spin, stop);
    Ok(driver.run())
}

/// From now on SIGINT and SIGTERM set `stop`; before, they end the program. However often they come, because a terminal and a
/// wrapper may both send one.
pub fn listen(stop: &Arc<AtomicBool>) -> Result<(), LoadError> {
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}
