//! `rota-bench scheduler`

use super::Failure;
use crate::load::driver::Window;
use crate::scheduler::{self, Compared, Options};
use crate::table::{Table, figure};
use crate::{process, scheduler::Session};
use rota_sim::workload::Workload;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Play a workload to a daemon with emulated devices, and to the simulator.
///
/// Both get the same arrivals. Example: `rota-bench scheduler sim/workloads/game.toml --devices 4 --factor 0.9`
#[derive(clap::Args)]
pub struct Arguments {
    /// Profiles and sessions, in TOML; see `rota plan --help`
    workload: PathBuf,
    /// How many devices are emulated [default: as many as the workload says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    devices: Option<u32>,
    /// All rates times this
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = above_zero)]
    factor: f64,
    /// Length of the measured window
    #[arg(long, value_name = "S", default_value_t = 20.0, value_parser = above_zero)]
    seconds: f64,
    /// Play for this long before it is measured: rates are measured and planned for in this time
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = above_zero)]
    warmup: f64,
    /// Of the arrival times
    #[arg(long, value_name = "K", default_value_t = 1)]
    seed: u64,
    /// The load generator never sleeps: exact send times, at the price of a core
    #[arg(long)]
    spin: bool,
    /// The daemon's program [default: beside this one]
    #[arg(long, value_name = "PATH")]
    rota: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let workload = read(&arguments.workload, arguments.factor, arguments.devices)?;
    let options = Options {
        workload: &workload,
        window: Window {
            warmup: Duration::from_secs_f64(arguments.warmup),
            length: Duration::from_secs_f64(arguments.seconds),
        },
        seed: arguments.seed,
        spin: arguments.spin,
    };
    let rota = process::program(arguments.rota)?;
    let compared = scheduler::run(&rota, &options, |what| eprintln!("rota-bench: {what}"))?;
    match arguments.json {
        true => println!("{}", serde_json::to_string(&compared)?),
        false => print(&compared),
    }
    Ok(())
}

/// A workload file, all rates times `factor`.
pub(super) fn read(path: &Path, factor: f64, devices: Option<u32>) -> Result<Workload, Failure> {
    let in_file = |error: &dyn std::fmt::Display| -> Failure { format!("{}: {error}", path.display()).into() };
    let text = std::fs::read_to_string(path).map_err(|error| in_file(&error))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let open = |name: &str| std::fs::read_to_string(folder.join(name)).map_err(|error| error.to_string());
    let mut workload = Workload::parse(&text, &open).map_err(|error| in_file(&error))?.scaled(factor);
    if let Some(devices) = devices {
        workload.set_devices(devices as usize).map_err(|error| in_file(&error))?;
    }
    Ok(workload)
}

fn print(compared: &Compared) {
    let mut table = Table::new([
        "session",
        "SLO",
        "offered/s",
        "promised/s",
        "simulated/s",
        "bad",
        "goodput/s",
        "bad",
        "by the daemon/s",
        "ratio",
    ]);
    let bad = |share: f64| format!("{:.2} %", 100.0 * share);
    let row = |session: &Session| {
        vec![
            session.model.clone(),
            session.slo_ms.map_or(String::new(), |ms| format!("{} ms", figure(ms))),
            figure(session.offered),
            session.promised.map_or("-".into(), figure),
            figure(session.simulated_goodput),
            bad(session.simulated_bad_rate),
            figure(session.goodput),
            bad(session.bad_rate),
            figure(session.daemon_goodput),
            session.ratio.map_or("-".into(), |ratio| format!("{ratio:.4}")),
        ]
    };
    compared.sessions.iter().chain([&compared.total]).for_each(|session| table.line(row(session)));
    table.print();
    let Compared { devices, seconds, plans, sent_late, lost, .. } = compared;
    println!("\n{devices} devices, {seconds} s; the daemon made {plans} plans");
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let (simulated, executed) = (percent(compared.simulated_utilisation), percent(compared.utilisation));
    println!("devices executed {simulated} of the time in the simulator, {executed} in the daemon");
    println!("{sent_late} requests were sent more than 1 ms late, {lost} were lost");
}

pub(super) fn above_zero(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| *value > 0.0 && *value <= 1e6);
    value.ok_or_else(|| "expected a number above 0 up to 1000000".into())
}
