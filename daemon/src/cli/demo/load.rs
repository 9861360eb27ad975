//! Open-loop Poisson load on every model from processes of its own, shown live, and the table at the end.

use super::answers::{self, Tensors};
use super::manifest::{Manifest, Model, Task};
use super::processes::Workshop;
use super::{Failure, Interrupted};
use rota_device::npy;
use rota_ipc::client::Control;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How much load, for how long.
pub struct Plan {
    pub length: Duration,
    /// Share of the devices that all models together are to take, each in batches of one: batching makes it less.
    pub share: f64,
}

/// A model under load: the process that asks, and what it says in the end.
struct Stream {
    model: String,
    slo_ms: f64,
    rate: f64,
    process: Child,
}

/// Requests per second that are asked of one model at most: more shows nothing new on one machine.
const RATE_MAX: f64 = 500.0;
/// On a device that is slow for a model its SLO is at least so many times ℓ(1): what nothing can meet shows nothing.
const SLO_FACTOR: f64 = 4.0;
const REDRAW: Duration = Duration::from_millis(250);
/// Between lines when nobody watches.
const LINE: Duration = Duration::from_secs(2);
const INPUTS_MAX: usize = 4;

pub fn show(
    manifest: &Manifest,
    plan: &Plan,
    rooms: &BTreeMap<(String, String), usize>,
    workshop: &Workshop,
    socket: &Path,
    interrupted: &Interrupted,
) -> Result<(), Failure> {
    let bench = find_bench()?;
    let before = status(socket)?;
    let devices = before["devices"].as_array().map_or(1, Vec::len).max(1) as f64;
    let models: Vec<&Model> = manifest.models.iter().filter(|m| m.task != Task::Map).collect();
    let mut streams = Vec::new();
    for (index, model) in models.iter().enumerate() {
        let Some((batch_of_one_ms, wanted_ms)) = profile_of(&before, &model.name) else { continue };
        let slo_ms = wanted_ms.max(SLO_FACTOR * batch_of_one_ms);
        if slo_ms > wanted_ms {
            let name = &model.name;
            println!(
                "{name} takes {batch_of_one_ms:.0} ms alone here: its SLO is {slo_ms:.0} ms instead of {wanted_ms:.0}"
            );
        }
        let rate = (devices * plan.share / models.len() as f64 * 1e3 / batch_of_one_ms).min(RATE_MAX);
        let inputs = write_inputs(manifest, model, workshop, index)?;
        let session = format!("{},slo_ms={slo_ms},rate={rate:.3}{inputs}{}", model.name, rooms_of(rooms, &model.name));
        let process = Command::new(&bench)
            .args(["load", "--json", "--warmup", "0.5", "--seed", &index.to_string(), "--session", &session])
            .args(["--seconds", &format!("{:.3}", plan.length.as_secs_f64() - 0.5), "--socket"])
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", bench.display()))?;
        streams.push(Stream { model: model.name.clone(), slo_ms, rate, process });
    }
    println!(
        "Poisson load from {} processes, each request with the SLO of its model; all together about {:.0} % of {}:",
        streams.len(),
        plan.share * 1e2,
        if devices > 1.0 { format!("the {devices} devices") } else { "the device".to_owned() },
    );
    let begin = Instant::now();
    let watched = watch(&mut streams, socket, plan.length, interrupted);
    let took = begin.elapsed();
    let after = watched.and_then(|()| status(socket));
    let mut reports = Vec::new();
    for stream in &mut streams {
        reports.push(finish(stream, after.is_err())?);
    }
    let after = after?;
    println!();
    print_table(&streams, &reports, &before, &after, took.mul_f64(devices));
    Ok(())
}

/// `rota-bench` beside this program: the load comes from processes that are nothing but clients.
fn find_bench() -> Result<PathBuf, Failure> {
    let bench = std::env::current_exe()?.with_file_name("rota-bench");
    if bench.exists() {
        return Ok(bench);
    }
    let text = "not found; `cargo build --release -p rota-bench` builds it (`--answers-only` does without)";
    Err(format!("{}: {text}", bench.display()).into())
}

fn status(socket: &Path) -> Result<Value, Failure> {
    Ok(Control::connect(socket, Duration::from_secs(10))?.status()?)
}

/// ℓ(1) and the SLO of a model that is served.
fn profile_of(status: &Value, name: &str) -> Option<(f64, f64)> {
    let model = status["models"].as_array()?.iter().find(|m| m["name"] == name && m["state"] == "ready")?;
    Some((model["profiles"][0]["1"].as_f64()?, model["default_slo_ms"].as_f64()?))
}

/// Writes the first request of some items as .npy files, and names them the way `rota-bench` wants them.
fn write_inputs(manifest: &Manifest, model: &Model, workshop: &Workshop, index: usize) -> Result<String, Failure> {
    let mut named = String::new();
    for (number, item) in model.items.iter().take(INPUTS_MAX).enumerate() {
        let Some(tensors): Option<Tensors> = answers::requests(manifest, model, item)?.into_iter().next() else {
            continue;
        };
        for (place, (input, tensor)) in tensors.iter().enumerate() {
            let file = workshop.folder().join(format!("{index}-{number}-{place}.npy"));
            npy::write(&file, tensor)?;
            named.push_str(&format!(",input={input}={}", file.display()));
        }
    }
    Ok(named)
}

/// Room for each output as the answers needed it: a model may leave its size open.
fn rooms_of(rooms: &BTreeMap<(String, String), usize>, model: &str) -> String {
    let ours = rooms.iter().filter(|((name, _), _)| name == model);
    ours.map(|((_, output), bytes)| format!(",room={output}={bytes}")).collect()
}

/// Shows what the daemon reports until every process has ended; ends them when the user wants it.
fn watch(streams: &mut [Stream], socket: &Path, length: Duration, interrupted: &Interrupted) -> Result<(), Failure> {
    let begin = Instant::now();
    let terminal = std::io::stdout().is_terminal();
    let mut lines = 0;
    let mut last = status(socket)?;
    let mut last_at = begin;
    loop {
        let running =
            streams.iter_mut().map(|s| matches!(s.process.try_wait(), Ok(None))).filter(|running| *running).count();
        if running == 0 {
            return Ok(());
        }
        interrupted.check()?;
        std::thread::sleep(Duration::from_millis(50));
        if last_at.elapsed() < if terminal { REDRAW } else { LINE } {
            continue;
        }
        let now = status(socket)?;
        let interval = last_at.elapsed().as_secs_f64();
        let rows: Vec<String> = streams.iter().filter_map(|s| live_row(s, &last, &now, interval)).collect();
        (last, last_at) = (now, Instant::now());
        let elapsed = begin.elapsed().as_secs_f64().min(length.as_secs_f64());
        if terminal {
            if lines > 0 {
                print!("\x1b[{lines}A\x1b[J");
            }
            println!("{elapsed:5.1} of {:.0} s", length.as_secs_f64());
            rows.iter().for_each(|row| println!("{row}"));
            lines = rows.len() + 1;
            std::io::stdout().flush()?;
        } else {
            println!("{elapsed:5.1} s");
            rows.iter().for_each(|row| println!("{row}"));
        }
    }
}

fn session<'a>(status: &'a Value, stream: &Stream) -> Option<&'a Value> {
    let is_its = |slo_ms: f64| (slo_ms - stream.slo_ms).abs() < 1e-3;
    let ours = |s: &&Value| s["model"] == stream.model.as_str() && s["slo_ms"].as_f64().is_some_and(is_its);
    status["sessions"].as_array()?.iter().find(ours)
}

fn count(session: Option<&Value>, key: &str) -> f64 {
    session.and_then(|s| s[key].as_f64()).unwrap_or(0.0)
}

/// What a session's requests did since the last look.
fn live_row(stream: &Stream, before: &Value, now: &Value, seconds: f64) -> Option<String> {
    let (before, now) = (session(before, stream), session(now, stream)?);
    let since = |key: &str| count(Some(now), key) - count(before, key);
    let answered = since("ok") / seconds;
    let bad = since("late") + since("dropped");
    let p99 = now["total_time"]["p99_ms"].as_f64().unwrap_or(0.0);
    let bar = "#".repeat((20.0 * (answered / stream.rate.max(1e-9)).min(1.5)) as usize);
    Some(format!(
        "  {:<18} {answered:>7.1}/s in time  {bad:>4.0} bad  p99 {p99:>7.1} ms of {:>4.0}  {bar}",
        stream.model, stream.slo_ms
    ))
}

/// Waits for the process's report; ends it first when the demo is cut short.
fn finish(stream: &mut Stream, cut_short: bool) -> Result<Value, Failure> {
    if cut_short {
        let _ = stream.process.kill();
        let _ = stream.process.wait();
        return Ok(Value::Null);
    }
    let mut text = String::new();
    let mut complaint = String::new();
    if let Some(mut out) = stream.process.stdout.take() {
        out.read_to_string(&mut text)?;
    }
    if let Some(mut err) = stream.process.stderr.take() {
        err.read_to_string(&mut complaint)?;
    }
    let status = stream.process.wait()?;
    if !status.success() {
        return Err(format!("the load on {} failed ({status}): {}", stream.model, complaint.trim_end()).into());
    }
    Ok(serde_json::from_str(&text)?)
}

/// `device_time`: what all devices together had.
fn print_table(streams: &[Stream], reports: &[Value], before: &Value, after: &Value, device_time: Duration) {
    println!(
        "{:<18} {:>7} {:>9} {:>9} {:>9} {:>6} {:>8} {:>8} {:>8} {:>6} {:>7}",
        "session",
        "SLO ms",
        "offered/s",
        "answered",
        "goodput",
        "bad %",
        "p50 ms",
        "p99 ms",
        "p99.9",
        "batch",
        "device"
    );
    for (stream, report) in streams.iter().zip(reports) {
        let of = |key: &str| report["sessions"][0][key].as_f64().unwrap_or(0.0);
        let busy_ms = count(session(after, stream), "busy_ms") - count(session(before, stream), "busy_ms");
        println!(
            "{:<18} {:>7.0} {:>9.1} {:>9.1} {:>9.1} {:>6.2} {:>8.2} {:>8.2} {:>8.2} {:>6.2} {:>6.1}%",
            stream.model,
            stream.slo_ms,
            of("offered_per_s"),
            of("answered_per_s"),
            of("goodput_per_s"),
            of("bad_rate") * 1e2,
            of("p50_ms"),
            of("p99_ms"),
            of("p999_ms"),
            of("mean_batch"),
            busy_ms / 10.0 / device_time.as_secs_f64(),
        );
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // It has ended, unless the demo broke off.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
