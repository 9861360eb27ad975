//! `rota-bench queries`

use super::Failure;
use super::scheduler::{above_zero, read};
use crate::process;
use crate::queries::{self, Compared, Options};
use crate::table::{Table, figure};
use std::path::PathBuf;
use std::time::Duration;

/// Play the queries of a workload to a daemon with emulated devices, and to the simulator.
///
/// Both get the same starts and the same fan-outs. Example: `rota-bench queries sim/workloads/query-traffic.toml --factor 0.8`
#[derive(clap::Args)]
pub struct Arguments {
    /// Profiles and queries, in TOML; see `rota plan --help`
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
    /// Play for this long before it is measured: γ and rates are measured and planned for in this time
    #[arg(long, value_name = "S", default_value_t = 15.0, value_parser = above_zero)]
    warmup: f64,
    /// Of the arrival times and fan-outs
    #[arg(long, value_name = "K", default_value_t = 1)]
    seed: u64,
    /// The daemon's program [default: beside this one]
    #[arg(long, value_name = "PATH")]
    rota: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let workload = read(&arguments.workload, arguments.factor, arguments.devices)?;
    let options = Options {
        workload: &workload,
        warmup: Duration::from_secs_f64(arguments.warmup),
        length: Duration::from_secs_f64(arguments.seconds),
        seed: arguments.seed,
    };
    let rota = process::program(arguments.rota)?;
    let compared = queries::run(&rota, &options, |what| eprintln!("rota-bench: {what}"))?;
    match arguments.json {
        true => println!("{}", serde_json::to_string(&compared)?),
        false => print(&compared),
    }
    Ok(())
}

fn print(compared: &Compared) {
    let head = ["query", "SLO", "offered/s", "simulated/s", "bad", "goodput/s", "bad", "ratio", "p50", "p99"];
    let mut table = Table::new(head);
    let bad = |share: f64| format!("{:.2} %", 100.0 * share);
    let ms = |ms: f64| format!("{} ms", figure(ms));
    for query in &compared.queries {
        table.line(vec![
            query.name.clone(),
            ms(query.slo_ms),
            figure(query.offered),
            figure(query.simulated_goodput),
            bad(query.simulated_bad_rate),
            figure(query.goodput),
            bad(query.bad_rate),
            query.ratio.map_or("-".into(), |ratio| format!("{ratio:.4}")),
            ms(query.latency_p50_ms),
            ms(query.latency_p99_ms),
        ]);
    }
    table.print();
    println!();
    let mut table = Table::new(["stage", "γ", "share", "simulated"]);
    for query in &compared.queries {
        for (name, gamma, share_ms, simulated_ms) in &query.stages {
            let gamma = gamma.map_or(String::new(), figure);
            table.line(vec![format!("{}/{name}", query.name), gamma, ms(*share_ms), ms(*simulated_ms)]);
        }
    }
    table.print();
    let Compared { devices, seconds, plans, sent_late, .. } = compared;
    println!(
        "\n{devices} devices, {seconds} s; the daemon made {plans} plans; {sent_late} queries began more than 1 ms late"
    );
}
