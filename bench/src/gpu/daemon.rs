//! The daemon on the GPUs, end to end: what it serves in time, what copies cost it, what loading a model does to others, what a prefix
//! group saves.

use super::Failure;
use super::lines::{self, Line, Writer};
use super::references::{self, Reference};
use super::timetable::{self, Overlap, Timetable};
use crate::folder::Folder;
use crate::load::arrivals::{Part, Pattern};
use crate::load::driver::Window;
use crate::load::report::Report;
use crate::load::spec::{SessionSpec, Size};
use crate::load::{Offer, Options, run_part};
use crate::process::Daemon;
use rota_ipc::ClientOptions;
use rota_ipc::client::Control;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// What to measure, and with what.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon's program.
    pub rota: PathBuf,
    pub repository: PathBuf,
    pub references: PathBuf,
    /// Models that share a trunk; measured when there are two or more.
    pub heads: Option<PathBuf>,
    /// What `rota-bench gpu models` wrote on this GPU: the times that overlap is computed from.
    pub models: Option<PathBuf>,
    /// Length of a window.
    pub length: Duration,
    /// Factor of all SLOs: on a stand-in driver nothing is in time otherwise.
    pub slo_factor: f64,
    /// Devices for the daemon's settings: `[[device]]` tables.
    pub devices: String,
}

/// Requests in flight of a closed loop, in batches: one runs, one is prepared, and the answers of two are on their way.
const BATCHES_IN_FLIGHT: u32 = 4;
/// Long enough that a closed loop is never dropped.
const SLO_CLOSED: Duration = Duration::from_secs(60);
const READY_MAX: Duration = Duration::from_secs(300);
/// Offered load as a share of what the models reach one by one, divided among them. The device is shared, so 1 is all of it.
const SHARES: [f64; 6] = [0.5, 0.7, 0.8, 0.9, 1.0, 1.1];
/// A batch's times are taken to grow with its size no further than this from one that was measured.
const NEAR: std::ops::RangeInclusive<f64> = 0.67..=1.5;
/// What is offered counts as served up to this share of bad requests.
const BAD_MAX: f64 = 0.01;

/// Does the experiments one after the other; each that fails is said, and the next goes on. Returns what failed.
pub fn run(settings: &Settings, lines: &mut Writer, mut progress: impl FnMut(&str)) -> Result<Vec<String>, Failure> {
    let references = references::read_all(&settings.references)?;
    let mut failed = Vec::new();
    type Experiment = fn(&Settings, &[(Reference, PathBuf)], &mut Writer) -> Result<(), Failure>;
    let mut experiments: Vec<(&str, Experiment)> =
        vec![("goodput and overlap", serving), ("loading a model while another serves", loading)];
    match settings.heads {
        Some(_) => experiments.push(("prefix group", prefix)),
        None => lines.write(&Line::Skipped {
            what: "prefix group".into(),
            why: "there are no models that share a trunk; models/heads.py makes them".into(),
        })?,
    }
    for (name, experiment) in experiments {
        progress(name);
        if let Err(error) = experiment(settings, &references, lines) {
            failed.push(format!("{name}: {error}"));
            lines.write(&Line::Skipped { what: name.into(), why: error.to_string() })?;
        }
    }
    lines.write(&Line::End { part: "daemon".into() })?;
    Ok(failed)
}

/// Each model alone with full batches; then all together, at growing rates.
fn serving(settings: &Settings, models: &[(Reference, PathBuf)], lines: &mut Writer) -> Result<(), Failure> {
    let daemon = start(settings, &settings.repository, "")?;
    let sizes = sizes(models);
    let mut reached = Vec::new();
    let mut timetable = Timetable::of_environment();
    for (reference, folder) in models {
        let session = SessionSpec { slo: Some(SLO_CLOSED), ..session(reference, folder, 1.0) };
        let offer = Offer::Closed(BATCHES_IN_FLIGHT * reference.max_batch);
        timetable.as_mut().map(Timetable::since).transpose()?;
        let report = load(&daemon, vec![session], &sizes, offer, settings.length)?;
        let (items_per_s, batch) = (report.total.answered_per_s, report.total.mean_batch.unwrap_or(0.0));
        let name = &reference.model;
        lines.write(&figure("throughput", format!("{name}, full batches"), items_per_s, "items/s"))?;
        lines.write(&figure("throughput", format!("{name}, mean batch"), batch, "items"))?;
        let events = timetable.as_mut().map(Timetable::since).transpose()?;
        let virtual_lines = events.as_deref().and_then(Overlap::of).map(|overlap| in_virtual_time(name, overlap));
        for line in overlap(settings, reference, items_per_s, batch)?.iter().chain(virtual_lines.iter().flatten()) {
            lines.write(line)?;
        }
        reached.push(items_per_s);
    }
    let mut best: Option<(f64, f64)> = None;
    for share in SHARES {
        let rate = |items_per_s: f64| (share * items_per_s / models.len() as f64).max(1.0);
        let with_rate = |((reference, folder), &items_per_s): (&(Reference, PathBuf), &f64)| SessionSpec {
            rate: Some(rate(items_per_s)),
            ..session(reference, folder, settings.slo_factor)
        };
        let sessions = models.iter().zip(&reached).map(with_rate).collect();
        let report = load(&daemon, sessions, &sizes, Offer::Arrivals(Pattern::Poisson), settings.length)?;
        let what = format!("all models at {share} of what they reach alone");
        lines.write(&figure("goodput", what.clone(), report.total.goodput_per_s, "items/s"))?;
        lines.write(&figure("goodput", format!("{what}: bad"), report.total.bad_rate * 100.0, "%"))?;
        if report.total.bad_rate <= BAD_MAX {
            best = Some((share, report.total.goodput_per_s));
        }
    }
    if let Some((share, goodput)) = best {
        let what = format!("largest goodput with at most 1 % bad, at a share of {share}");
        lines.write(&figure("goodput", what, goodput, "items/s"))?;
    }
    Ok(())
}

/// How much of the copies' time a full pipeline hides, from the device's own times of the nearest batch; nothing without them.
fn overlap(settings: &Settings, reference: &Reference, items_per_s: f64, batch: f64) -> Result<Vec<Line>, Failure> {
    let Some(file) = &settings.models else { return Ok(Vec::new()) };
    let of_this = |line: Line| match line {
        Line::Model(model) if model.model == reference.model && model.precision == "fp32" => Some(model),
        _ => None,
    };
    let rows: Vec<lines::Model> = lines::read(file)?.into_iter().filter_map(of_this).collect();
    let distance = |row: &&lines::Model| (f64::from(row.batch) - batch).abs();
    let Some(row) = rows.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))) else { return Ok(Vec::new()) };
    let scale = batch / f64::from(row.batch);
    if !NEAR.contains(&scale) {
        return Ok(Vec::new());
    }
    let [copies, execute] = [row.copy_in_us + row.copy_out_us, row.execute_us].map(|us| us * scale);
    let period = batch / items_per_s * 1e6;
    let Some(hidden) = hidden_share(copies, execute, period) else { return Ok(Vec::new()) };
    let line = |what: &str, value, unit| {
        figure("overlap", format!("{}, batch {batch:.1}: {what}", reference.model), value, unit)
    };
    Ok(vec![
        line("copies, by the device", copies, "µs"),
        line("execution, by the device", execute, "µs"),
        line("a batch every", period, "µs"),
        line("hidden of the shorter", hidden * 100.0, "%"),
    ])
}

/// The same by the stand-in's timetable, of the GPU whose times it has.
fn in_virtual_time(model: &str, overlap: Overlap) -> [Line; 3] {
    let line = |what: &str, share: f64| {
        figure("overlap", format!("{model}, full batches, by the stand-in's timetable: {what}"), share * 100.0, "%")
    };
    [
        line("copies in under kernels", overlap.copies_in),
        line("copies out under kernels", overlap.copies_out),
        line("kernels run", overlap.busy),
    ]
}

/// Batches come every `period`; without overlap a batch takes `copies` and `execute` one after the other, with a full one
/// the longer of the two. `None` when there is nothing to hide.
fn hidden_share(copies: f64, execute: f64, period: f64) -> Option<f64> {
    let hideable = copies.min(execute);
    let share = (copies + execute - period) / hideable;
    (hideable > 0.0 && period.is_finite()).then(|| share.clamp(0.0, 1.0))
}

/// One model is asked at half of what it reaches while another is loaded.
fn loading(settings: &Settings, models: &[(Reference, PathBuf)], lines: &mut Writer) -> Result<(), Failure> {
    let weight = |(reference, _): &&(Reference, PathBuf)| -> u64 {
        let file = references::newest(&settings.repository.join(&reference.model)).ok().flatten();
        file.and_then(|(_, file)| file.metadata().ok()).map_or(0, |metadata| metadata.len())
    };
    let (Some(served), Some(loaded)) = (models.iter().min_by_key(weight), models.iter().max_by_key(weight)) else {
        return Err("there are no models".into());
    };
    if served.0.model == loaded.0.model {
        return Err("there is only one model".into());
    }
    let repository = Folder::new("loading")?;
    let link = |model: &str| -> Result<(), Failure> {
        let source = settings.repository.join(model).canonicalize()?;
        Ok(std::os::unix::fs::symlink(source, repository.join(model))?)
    };
    link(&served.0.model)?;
    let daemon = start(settings, &repository, "")?;
    let sizes = sizes(models);
    let closed = SessionSpec { slo: Some(SLO_CLOSED), ..session(&served.0, &served.1, 1.0) };
    let alone = load(&daemon, vec![closed], &sizes, Offer::Closed(served.0.max_batch), settings.length)?;
    let rate = (alone.total.answered_per_s / 2.0).max(1.0);
    let offer = || -> Result<Report, Failure> {
        let session = session(&served.0, &served.1, settings.slo_factor);
        let sessions = vec![SessionSpec { rate: Some(rate), ..session }];
        load(&daemon, sessions, &sizes, Offer::Arrivals(Pattern::Poisson), settings.length)
    };
    let before = offer()?;
    link(&loaded.0.model)?;
    let (socket, model) = (daemon.socket(), loaded.0.model.clone());
    let loading = std::thread::spawn(move || -> Result<Duration, String> {
        let begin = Instant::now();
        let mut control = Control::connect(socket, READY_MAX).map_err(|error| error.to_string())?;
        control.load(&model, None).map_err(|error| error.to_string())?;
        Ok(begin.elapsed())
    });
    let during = offer()?;
    let took = loading.join().map_err(|_| "the thread that loads panicked")??;
    let after = offer()?;
    let who = format!("{} while {} is loaded", served.0.model, loaded.0.model);
    lines.write(&figure("load spike", format!("{who}: loading took"), took.as_secs_f64() * 1e3, "ms"))?;
    for (when, report) in [("before", &before), ("while it loads", &during), ("after", &after)] {
        for (quantile, value) in
            [("p50", report.total.p50_ms), ("p99", report.total.p99_ms), ("max", report.total.max_ms)]
        {
            if let Some(ms) = value {
                lines.write(&figure("load spike", format!("{who}: {when}, {quantile}"), ms, "ms"))?;
            }
        }
        lines.write(&figure("load spike", format!("{who}: {when}, bad"), report.total.bad_rate * 100.0, "%"))?;
    }
    Ok(())
}

/// Heads on one trunk, served whole and together.
fn prefix(settings: &Settings, _: &[(Reference, PathBuf)], lines: &mut Writer) -> Result<(), Failure> {
    let heads = settings.heads.as_ref().ok_or("no repository of heads is given")?;
    let mut per_s = Vec::new();
    for (what, extra) in [("each model whole", "prefix = false\n"), ("together", "")] {
        let daemon = start(settings, heads, extra)?;
        let models = Control::connect(daemon.socket(), READY_MAX)?.models()?;
        let grouped = models.iter().filter(|model| model.group.is_some()).count();
        if models.len() < 2 || (extra.is_empty() && grouped < 2) {
            return Err(format!("{} models are served, {grouped} of them in a group", models.len()).into());
        }
        let closed = |model: &rota_ipc::control::ModelInfo| SessionSpec {
            model: model.name.clone(),
            slo: Some(SLO_CLOSED),
            rate: None,
            items: 1,
            inputs: Vec::new(),
            rooms: Vec::new(),
            in_flight_max: None,
        };
        let sessions = models.iter().map(closed).collect();
        let report = load(&daemon, sessions, &[], Offer::Closed(8), settings.length)?;
        let name = format!("{} models, {what}", models.len());
        lines.write(&figure("prefix group", name, report.total.answered_per_s, "answers/s"))?;
        per_s.push(report.total.answered_per_s);
    }
    lines.write(&figure("prefix group", "together against whole".into(), per_s[1] / per_s[0], "times"))
}

/// A daemon that has loaded all that is in `repository`.
fn start(settings: &Settings, repository: &Path, extra: &str) -> Result<Daemon, Failure> {
    let repository = repository.canonicalize()?;
    // The defaults, on a GPU that is so much slower.
    let leads = |slower: u64| format!("prepare_lead_us = {}\nstart_lead_us = {}\n", 200 * slower, 100 * slower);
    let leads = timetable::slower().map(leads).unwrap_or_default();
    let config =
        format!("{extra}{leads}repository = {repository:?}\nprofile_cache = \"profiles\"\n{}\n", settings.devices);
    let daemon = Daemon::start(&settings.rota, &config, &[])?;
    let begin = Instant::now();
    loop {
        let status = Control::connect(daemon.socket(), READY_MAX)?.status()?;
        if status["loading"] == false && status["grouping"] == false {
            return Ok(daemon);
        }
        if begin.elapsed() > READY_MAX {
            return Err(format!("the daemon has not loaded its models within {READY_MAX:?}").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asked for within the model's own SLO times `slo_factor`.
fn session(reference: &Reference, folder: &Path, slo_factor: f64) -> SessionSpec {
    SessionSpec {
        model: reference.model.clone(),
        slo: Some(Duration::from_secs_f64(reference.slo_ms * slo_factor / 1e3)),
        rate: None,
        items: 1,
        inputs: reference.files(folder),
        rooms: Vec::new(),
        in_flight_max: None,
    }
}

/// Inputs are all given as files, whose sizes say the rest; a model that is found not to batch has its batch's dimension open.
fn sizes(models: &[(Reference, PathBuf)]) -> Vec<Size> {
    models.iter().filter_map(|(reference, _)| Some(Size { name: reference.batch_symbol.clone()?, size: 1 })).collect()
}

fn load(
    daemon: &Daemon,
    sessions: Vec<SessionSpec>,
    sizes: &[Size],
    offer: Offer,
    length: Duration,
) -> Result<Report, Failure> {
    let options = Options {
        socket: daemon.socket(),
        sessions,
        sizes: sizes.to_vec(),
        offer,
        window: Window { warmup: length / 5, length },
        seed: 1,
        spin: false,
        client_spin: ClientOptions::default().spin,
        in_flight_max: 256,
        arena_bytes: 512 << 20,
    };
    let measured = run_part(&options, Part::WHOLE, &AtomicBool::new(false), || Ok(()))?;
    if let Some(why) = measured.broken {
        return Err(why.into());
    }
    let report = Report::new(measured.seconds, &measured.sessions);
    let failure = measured.sessions.iter().find_map(|session| session.failure.as_ref());
    match failure {
        Some(failure) if report.total.failed > 0 => Err(format!("a request failed: {failure}").into()),
        _ => Ok(report),
    }
}

fn figure(experiment: &str, what: String, value: f64, unit: &str) -> Line {
    Line::Daemon(lines::Daemon { experiment: experiment.into(), what, value, unit: unit.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_hidden_as_far_as_a_batch_comes_sooner_than_its_parts_take() {
        assert_eq!(hidden_share(10.0, 30.0, 40.0), Some(0.0));
        assert_eq!(hidden_share(10.0, 30.0, 35.0), Some(0.5));
        assert_eq!(hidden_share(10.0, 30.0, 30.0), Some(1.0));
        assert_eq!(hidden_share(30.0, 10.0, 30.0), Some(1.0));
        assert_eq!(hidden_share(10.0, 30.0, 50.0), Some(0.0));
        assert_eq!(hidden_share(0.0, 30.0, 30.0), None);
        assert_eq!(hidden_share(10.0, 30.0, f64::INFINITY), None);
    }
}
