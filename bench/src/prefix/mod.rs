//! Specialised models that share a trunk: served together, next to the same models served whole.

pub mod emulated;
pub mod goodput;

use crate::cores;
use crate::folder::Folder;
use crate::process::Daemon;
use crate::rounds::{Comparison, Contender, Failure, compare};
use goodput::{Asker, Search};
use rota_ipc::client::{Control, Open, Request, Session};
use rota_ipc::control::DimInfo;
use rota_ipc::wire::SESSIONS_MAX;
use rota_ipc::{Client, ClientOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What serving together saves.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Measured {
    pub models: Vec<String>,
    pub memory: Vec<Memory>,
    pub comparisons: Vec<Comparison>,
}

/// What a daemon holds after it was loaded with work.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Memory {
    pub name: String,
    /// Resident, without what it shares with its clients.
    pub resident_mb: f64,
    pub above_empty_mb: f64,
    /// To that of the daemon with one model.
    pub ratio: f64,
}

/// Requests in flight, of each session or, where all are asked at once, of all together.
const DEPTH: usize = 8;
/// Loading measures profiles, on a host that may be busy.
const READY_MAX: Duration = Duration::from_secs(600);
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// The SLO of goodputs: what so many rounds of one item for each model take, each served whole.
const SLO_BATCHES: f64 = 8.0;
const ARENA_BYTES: u64 = 256 << 20;
const SLOTS: u32 = 2048;

/// Measures with the first `count` models of `repository`, each with one input whose first axis is the batch. The daemons have
/// the last core to themselves, the client the first.
pub fn run(
    rota: &Path,
    repository: &Path,
    count: usize,
    rounds: u32,
    length: Duration,
    mut progress: impl FnMut(&str),
) -> Result<Measured, Failure> {
    let models = models(repository, count)?;
    let cores = cores::allowed()?;
    let (own, daemons) = (cores[0], cores[cores.len() - 1]);
    let some = |models: &[PathBuf]| -> Result<Folder, Failure> {
        let folder = Folder::new("prefix")?;
        for model in models {
            std::os::unix::fs::symlink(model, folder.join(model.file_name().unwrap_or_default()))?;
        }
        Ok(folder)
    };
    let (empty, one, all) = (some(&[])?, some(&models[..1])?, some(&models)?);
    // Measured once, for all of them.
    let profiles = Folder::new("prefix-profiles")?;
    cores::pin(daemons)?;
    let mut start = |what: &str, repository: &Path, settings: &str| -> Result<Daemon, Failure> {
        progress(&format!("starting a daemon with {what}"));
        let config = format!(
            "{settings}repository = \"{}\"\nprofile_cache = \"{}\"\n[[device]]\nkind = \"cpu\"\ncores = [{daemons}]\nthreads = 1\n",
            repository.display(),
            profiles.display()
        );
        let daemon = Daemon::start(rota, &config, &[])?;
        wait_until_ready(&daemon)?;
        Ok(daemon)
    };
    let empty = start("no model", &empty, "")?;
    let one = start("one model", &one, "")?;
    let whole = start("all models, each whole", &all, "prefix = false\n")?;
    let together = start("all models together", &all, "")?;
    cores::pin(own)?;
    let names: Vec<String> =
        models.iter().map(|model| model.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect();
    require_group(&together, &names)?;
    progress("different inputs");
    let different = [("each model whole", &whole), ("together", &together)];
    let mut comparisons =
        throughput("answers, a request for each model and input", &different, &names, Ask::One, rounds, length)?;
    progress("the same inputs");
    let same = [
        ("each model whole, a request for each", &whole, Ask::One),
        ("together, one request for all", &together, Ask::All),
    ];
    let mut contenders = Vec::new();
    for (name, daemon, ask) in same {
        contenders.push(contender(name, daemon, &names, ask, length)?);
    }
    comparisons.extend(compare(&[("answers, every model asked about every input", "1/s")], rounds, &mut contenders)?);
    drop(contenders);
    progress("memory");
    throughput("", &[("one model", &one)], &names[..1], Ask::One, 1, length)?;
    let daemons = [("no model", &empty), ("one model", &one), ("each model whole", &whole), ("together", &together)];
    let memory = memory(&daemons)?;
    progress("goodput");
    // So long that batches of eight whole models can follow each other.
    let slo = Duration::from_secs_f64(SLO_BATCHES / comparisons[0].rows[0].median * count as f64);
    for (what, ask) in [("different inputs", Ask::One), ("every model asked about every input", Ask::All)] {
        let search = Search { length, guess: comparisons[0].rows[0].median / 2.0, seed: 0 };
        let contender = |name: &str, daemon: &Daemon| -> Result<_, Failure> {
            Ok(goodput::contender(name, Asker::new(daemon, &names, ask, slo)?, search))
        };
        let mut contenders = [contender("each model whole", &whole)?, contender("together", &together)?];
        let what = format!("goodput under an SLO of {:.0} ms, {what}", slo.as_secs_f64() * 1e3);
        comparisons.extend(compare(&[(&what, "1/s")], rounds, &mut contenders)?);
    }
    Ok(Measured { models: names, memory, comparisons })
}

/// Of daemons of which the first has no model and the second one.
fn memory(daemons: &[(&str, &Daemon)]) -> Result<Vec<Memory>, Failure> {
    let resident: Vec<u64> = daemons.iter().map(|(_, daemon)| daemon.resident_bytes()).collect::<Result<_, _>>()?;
    let above = |bytes: u64| (bytes as f64 - resident[0] as f64) / 1e6;
    let row = |((name, _), &bytes): (&(&str, &Daemon), &u64)| Memory {
        name: name.to_string(),
        resident_mb: bytes as f64 / 1e6,
        above_empty_mb: above(bytes),
        ratio: above(bytes) / above(resident[1]),
    };
    Ok(daemons.iter().zip(&resident).map(row).collect())
}

fn models(repository: &Path, count: usize) -> Result<Vec<PathBuf>, Failure> {
    let hint = "make them with models/fetch.py and models/heads.py, or name a --repository";
    let entries =
        std::fs::read_dir(repository).map_err(|error| format!("{}: {error}; {hint}", repository.display()))?;
    let mut models = Vec::new();
    for entry in entries {
        let path = entry?.path().canonicalize()?;
        if path.join("1/model.onnx").exists() {
            models.push(path);
        }
    }
    models.sort();
    models.truncate(count.min(SESSIONS_MAX));
    match models.len() {
        0 | 1 => Err(format!("{}: fewer than two models; {hint}", repository.display()).into()),
        _ => Ok(models),
    }
}

fn wait_until_ready(daemon: &Daemon) -> Result<(), Failure> {
    let begin = Instant::now();
    while begin.elapsed() < READY_MAX {
        let status = Control::connect(daemon.socket(), ANSWER_MAX)?.status()?;
        if status["loading"] == false && status["grouping"] == false {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!("the daemon has not loaded its models within {READY_MAX:?}").into())
}

/// Otherwise there would be nothing to compare.
fn require_group(daemon: &Daemon, names: &[String]) -> Result<(), Failure> {
    let models = Control::connect(daemon.socket(), ANSWER_MAX)?.models()?;
    let alone: Vec<&str> =
        models.iter().filter(|model| model.group.is_none()).map(|model| model.name.as_str()).collect();
    if models.len() == names.len() && alone.is_empty() {
        return Ok(());
    }
    Err(format!("{} of {} models are served, and these share nothing: {}", models.len(), names.len(), alone.join(", "))
        .into())
}

/// How requests are made.
#[derive(Clone, Copy)]
pub enum Ask {
    /// Each asks one model.
    One,
    /// Each asks all.
    All,
}

fn throughput(
    what: &str,
    daemons: &[(&str, &Daemon)],
    names: &[String],
    ask: Ask,
    rounds: u32,
    length: Duration,
) -> Result<Vec<Comparison>, Failure> {
    let mut contenders = Vec::new();
    for (name, daemon) in daemons {
        contenders.push(contender(name, daemon, names, ask, length)?);
    }
    compare(&[(what, "1/s")], rounds, &mut contenders)
}

/// Keeps [`DEPTH`] requests of each session in flight, or of all.
fn contender<'a>(
    name: &str,
    daemon: &Daemon,
    names: &[String],
    ask: Ask,
    length: Duration,
) -> Result<Contender<'a>, Failure> {
    // Long enough that a host that is busy with other things drops nothing.
    let (mut client, requests) = connect(daemon, names, ask, Duration::from_secs(60), DEPTH * names.len())?;
    let mut idle: Vec<Request> = requests.into_iter().flat_map(|own| own.into_iter().take(DEPTH)).collect();
    Ok(Contender::new(name, move || {
        let (begin, mut answers) = (Instant::now(), 0);
        while begin.elapsed() < length || client.in_flight_count() > 0 {
            if begin.elapsed() < length {
                for request in idle.drain(..) {
                    client.submit(request)?;
                }
            }
            let answer = client.wait(ANSWER_MAX)?.ok_or_else(|| format!("no answer within {ANSWER_MAX:?}"))?;
            answer.check()?;
            let request = answer.into_request();
            answers += request.sessions().len();
            idle.push(request);
        }
        Ok(vec![answers as f64 / begin.elapsed().as_secs_f64()])
    }))
}

/// Opens the models under one SLO; requests of one item by what is asked, about `most` in all, or as many as fit.
fn connect(
    daemon: &Daemon,
    names: &[String],
    ask: Ask,
    slo: Duration,
    most: usize,
) -> Result<(Client, Vec<Vec<Request>>), Failure> {
    let options = ClientOptions { slots: SLOTS, arena_bytes: ARENA_BYTES, ..ClientOptions::default() };
    let mut client = Client::connect(daemon.socket(), options)?;
    let open = Open { version: None, slo: Some(slo) };
    let sessions = names.iter().map(|name| client.open(name, open)).collect::<Result<Vec<Session>, _>>()?;
    let groups: Vec<&[Session]> = match ask {
        Ask::One => sessions.chunks(1).collect(),
        Ask::All => vec![&sessions],
    };
    let dims = one_item(&sessions[0])?;
    let item_bytes = dims.iter().map(|&dim| u64::from(dim)).product::<u64>() * 4;
    // Outputs and gaps take a part of the arena too.
    let fit = usize::try_from(ARENA_BYTES / 2 / item_bytes.max(1)).unwrap_or(most);
    let each = most.min(fit) / groups.len();
    let request = |group: &[Session], number: usize| -> Result<Request, Failure> {
        let mut request = client.request_of(group)?;
        for (at, value) in request.input::<f32>(0, &dims)?.iter_mut().enumerate() {
            *value = ((at + number * 17) as f32 * 0.37).sin();
        }
        Ok(request)
    };
    let requests = groups.iter().enumerate().map(|(at, group)| {
        let numbers = at * each..(at + 1) * each;
        numbers.map(|number| request(group, number)).collect::<Result<Vec<Request>, Failure>>()
    });
    let requests = requests.collect::<Result<Vec<_>, Failure>>()?;
    Ok((client, requests))
}

/// The dimensions of one item of the model's input.
fn one_item(session: &Session) -> Result<Vec<u32>, Failure> {
    let input = &session.model().inputs[0];
    let dims = input.dims.iter().enumerate().map(|(axis, dim)| match dim {
        _ if input.batch_axis == Some(axis) => Ok(1),
        DimInfo::Fixed(size) => Ok(*size as u32),
        DimInfo::Named(name) => Err(format!("model {} leaves {name} open", session.model().name).into()),
    });
    dims.collect()
}
