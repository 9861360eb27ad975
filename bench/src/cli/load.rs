//! `rota-bench load`

use super::Failure;
use crate::load::arrivals::{Part, Pattern, read_trace};
use crate::load::driver::Window;
use crate::load::processes::{run_as_part, run_parts};
use crate::load::report::{Report, plot};
use crate::load::spec::{SessionSpec, Size};
use crate::load::{LoadError, Measured, Offer, Options, listen, run_part};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Offer load to sessions of a running daemon.
///
/// Open loop (a rate for each session), closed loop (--closed), or from a trace. Example:
/// `rota-bench load --session digits,rate=500,slo_ms=20 --session words,rate=50 --shape tokens=32 --seconds 10`
#[derive(clap::Args)]
pub struct Arguments {
    /// Where the daemon listens [default: $ROTA_SOCKET, $XDG_RUNTIME_DIR/rota.sock or /run/rota/rota.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// MODEL[,slo_ms=50][,rate=200][,items=1][,input=NAME=FILE.npy]...[,room=OUTPUT=BYTES]...[,in_flight=N]
    #[arg(long = "session", value_name = "SESSION", required = true)]
    sessions: Vec<SessionSpec>,
    /// Size of a dimension that a model leaves open: name=size, or input:axis=size
    #[arg(long = "shape", value_name = "NAME=SIZE")]
    shapes: Vec<Size>,
    /// Keep this many requests in flight per session and process
    #[arg(long, value_name = "N", conflicts_with_all = ["arrivals", "trace"], value_parser = clap::value_parser!(u32).range(1..))]
    closed: Option<u32>,
    /// How requests of an open loop follow each other
    #[arg(long, value_enum, default_value = "poisson")]
    arrivals: Pattern,
    /// Send at the times of this file: lines of arrival_ms,session
    #[arg(long, value_name = "FILE", conflicts_with = "arrivals")]
    trace: Option<PathBuf>,
    /// Length of the measured window [default: 10, or to the end of the trace]
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Offer load for this long before it is measured
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds)]
    warmup: Duration,
    /// Of the arrival times
    #[arg(long, value_name = "K", default_value_t = 1)]
    seed: u64,
    /// Offer the load from this many processes, each with its own connection
    #[arg(long, value_name = "P", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    processes: u32,
    /// Never sleep: exact send times, at the price of a core per process
    #[arg(long)]
    spin: bool,
    /// Most requests in flight of a session and process in an open loop
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=4096))]
    in_flight_max: u32,
    /// Shared memory for the requests of an open loop, per process
    #[arg(long, value_name = "MB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    arena_mb: u32,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Write a plot of latency against percentile
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Which of several processes this is
    #[arg(long, hide = true)]
    part: Option<Part>,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let options = options(&arguments)?;
    if let Some(part) = arguments.part {
        return Ok(run_as_part(&options, part, &stop)?);
    }
    let measured = match arguments.processes {
        1 => run_part(&options, Part::WHOLE, &stop, || listen(&stop))?,
        count => run_parts(count, &stop)?,
    };
    print(&arguments, &measured)?;
    match measured.broken {
        Some(why) => Err(format!("the load broke off: {why}").into()),
        None => Ok(()),
    }
}

fn options(arguments: &Arguments) -> Result<Options, Failure> {
    let offer = match (&arguments.trace, arguments.closed) {
        (Some(file), _) => {
            let models: Vec<&str> = arguments.sessions.iter().map(|spec| spec.model.as_str()).collect();
            Offer::Trace(read_trace(file, &models)?)
        }
        (None, Some(in_flight)) => Offer::Closed(in_flight),
        (None, None) => {
            // Said before anything is started.
            if let Some(spec) = arguments.sessions.iter().find(|spec| spec.rate.is_none()) {
                return Err(LoadError::NoRate { model: spec.model.clone() }.into());
            }
            Offer::Arrivals(arguments.arrivals)
        }
    };
    let length = arguments.seconds.unwrap_or(match &offer {
        Offer::Trace(trace) => Duration::from_nanos(trace.last_ns() + 1).saturating_sub(arguments.warmup),
        _ => Duration::from_secs(10),
    });
    Ok(Options {
        socket: arguments.socket.clone().unwrap_or_else(rota_ipc::client::default_socket_path),
        sessions: arguments.sessions.clone(),
        sizes: arguments.shapes.clone(),
        offer,
        window: Window { warmup: arguments.warmup, length },
        seed: arguments.seed,
        spin: arguments.spin,
        client_spin: CLIENT_SPIN,
        in_flight_max: arguments.in_flight_max,
        arena_bytes: (arguments.arena_mb as usize) << 20,
    })
}

fn print(arguments: &Arguments, measured: &Measured) -> Result<(), Failure> {
    let report = Report::new(measured.seconds, &measured.sessions);
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        report.table().print();
        println!();
        report.counts().print();
    }
    for session in &measured.sessions {
        if let Some(failure) = &session.failure {
            eprintln!("rota-bench: {}: a request failed: {failure}", session.model);
        }
    }
    if let Some(file) = &arguments.svg {
        let written = std::fs::write(file, plot(&measured.sessions));
        written.map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.0..1e6).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "a number of seconds".into())
}

/// As short as the client library's own default: the load generator shares its cores with what it measures.
const CLIENT_SPIN: Duration = Duration::from_micros(20);
