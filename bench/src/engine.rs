//! What serving costs: a saturated session of the real daemon against its engine called in a bare loop.
//!
//! Same model, same inputs, same batch size, one thread on the same core, in turns. The engine is called twice over: on tensors
//! that are a batch already ([`Network::run`]), and on requests whose inputs have to be gathered from as many arenas
//! ([`Network::execute`]), which is what the daemon's device does.

use crate::cores;
use crate::folder::Folder;
use crate::load::arrivals::Part;
use crate::load::driver::Window;
use crate::load::inputs::Inputs;
use crate::load::report::Report;
use crate::load::spec::{SessionSpec, Size};
use crate::load::{Offer, Options, run_part};
use crate::npy::Array;
use crate::process::Daemon;
use crate::rounds::{Comparison, Contender, Failure, compare};
use rota_device::engine::{self, CompileOptions, Engine, EngineChoice};
use rota_device::{Batch, DType, HostTensor, Network, NetworkId, Shape, sample};
use rota_ipc::client::Open;
use rota_ipc::control::ModelInfo;
use rota_ipc::{Client, ClientOptions};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon's program.
    pub rota: PathBuf,
    /// Holds `<model>/<version>/model.onnx`; a `manifest.json` beside it names inputs.
    pub repository: PathBuf,
    pub models: Vec<String>,
    pub rounds: u32,
    /// Length of one turn.
    pub length: Duration,
}

/// Batches that the clients keep in flight: one executes, one waits behind it, and the answers of one are on their way.
const BATCHES_IN_FLIGHT: u32 = 4;
/// Long enough that every batch is a full one.
const SLO: Duration = Duration::from_secs(60);
const WARMUP: Duration = Duration::from_millis(200);

/// Measures one model after the other.
pub fn run(settings: &Settings, mut progress: impl FnMut(&str)) -> Result<Vec<Comparison>, Failure> {
    let cores = cores::allowed()?;
    let core = cores[cores.len() - 1];
    let engine = engine::open(&EngineChoice::Auto)?.engine;
    let mut compared = Vec::new();
    for name in &settings.models {
        progress(&format!("{name}: loading and profiling"));
        let subject = Subject::new(settings, name, core)?;
        progress(&format!("{name}: batches of {} on {}", subject.model.max_batch, engine.describe()));
        compared.extend(subject.compare(settings, &*engine, core)?);
    }
    Ok(compared)
}

/// A daemon that serves one model, and what to ask it.
struct Subject {
    daemon: Daemon,
    model: ModelInfo,
    /// The model's newest file.
    file: PathBuf,
    batch_symbol: Option<String>,
    sizes: Vec<Size>,
    inputs: Vec<(String, PathBuf)>,
    /// Holds the daemon's repository: a link to the model's folder.
    _repository: Folder,
}

impl Subject {
    fn new(settings: &Settings, name: &str, core: usize) -> Result<Subject, Failure> {
        let source = settings.repository.join(name);
        let source = source.canonicalize().map_err(|error| {
            format!("{}: {error}; fetch the models first, or name their --repository", source.display())
        })?;
        let repository = Folder::new("models")?;
        std::os::unix::fs::symlink(&source, repository.join(name))?;
        let config = format!(
            "repository = {:?}\nprofile_cache = \"profiles\"\n[[device]]\nkind = \"cpu\"\ncores = [{core}]\nthreads = 1\n",
            repository.display()
        );
        let daemon = Daemon::start(&settings.rota, &config, &[])?;
        // Opening a session waits until the model is loaded and profiled.
        let options =
            ClientOptions { arena_bytes: 4096, timeout: Duration::from_secs(600), ..ClientOptions::default() };
        let mut client = Client::connect(daemon.socket(), options)?;
        let model = client.open(name, Open::default())?.model().clone();
        let own = ModelToml::read(&source)?;
        let mut sizes: Vec<Size> = own.shape.into_iter().map(|(name, size)| Size { name, size }).collect();
        // Of a model that the daemon found not to batch: then this is a dimension like any other.
        sizes.extend(own.batch_symbol.iter().map(|name| Size { name: name.clone(), size: 1 }));
        Ok(Subject {
            file: source.join(model.version.to_string()).join("model.onnx"),
            batch_symbol: own.batch_symbol,
            sizes,
            inputs: manifest_inputs(&settings.repository, name)?,
            daemon,
            model,
            _repository: repository,
        })
    }

    fn compare(&self, settings: &Settings, engine: &dyn Engine, core: usize) -> Result<Vec<Comparison>, Failure> {
        let items = self.model.max_batch;
        let compile = || engine.compile(&self.file, &self.compile_options(core));
        let (mut network, mut gathering) = (compile()?, compile()?);
        let whole = self.tensors(items, 0)?;
        let requests: Vec<Vec<HostTensor>> =
            (0..items).map(|v| self.tensors(1, v as usize)).collect::<Result<_, _>>()?;
        let room: Vec<usize> = network.run(&requests[0])?.iter().map(|output| output.bytes.len()).collect();
        let mut batch = sample::lay_out(NetworkId(0), network.signature(), &requests, &room)?;

        let what = format!("{}, batches of {items}", self.model.name);
        let metrics = [(what.as_str(), "items/s"), ("… mean batch", "items")];
        let mut contenders = [
            Contender::new("the engine alone", || {
                bare(core, settings.length, items, || network.run(&whole).map(drop).map_err(|e| e.to_string()))
            }),
            Contender::new("gathering from arenas", || {
                bare(core, settings.length, items, || execute(&mut *gathering, &mut batch))
            }),
            Contender::new("through the daemon", || self.served(settings.length)),
        ];
        compare(&metrics, settings.rounds, &mut contenders)
    }

    fn compile_options(&self, core: usize) -> CompileOptions {
        let tensors = self.model.inputs.iter().chain(&self.model.outputs);
        CompileOptions {
            threads: 1,
            cores: vec![core],
            max_batch: Some(self.model.max_batch),
            batch_symbol: self.batch_symbol.clone(),
            // As the daemon found them.
            batch_axes: tensors.map(|info| (info.name.clone(), info.batch_axis)).collect(),
            precision: None,
            stack_members: 0,
        }
    }

    fn session(&self, items: u32) -> SessionSpec {
        let (model, inputs) = (self.model.name.clone(), self.inputs.clone());
        SessionSpec { model, slo: Some(SLO), rate: None, items, inputs, rooms: Vec::new(), in_flight_max: None }
    }

    /// The inputs of a request of `items`, as the engine takes them.
    fn tensors(&self, items: u32, variant: usize) -> Result<Vec<HostTensor>, Failure> {
        let inputs = Inputs::new(&self.session(items), &self.model, &self.sizes)?;
        inputs.arrays(variant).map(host_tensor).collect()
    }

    /// Items per second of a closed loop that keeps the batches full, and their mean size.
    fn served(&self, length: Duration) -> Result<Vec<f64>, Failure> {
        let options = Options {
            socket: self.daemon.socket(),
            sessions: vec![self.session(1)],
            sizes: self.sizes.clone(),
            offer: Offer::Closed(BATCHES_IN_FLIGHT * self.model.max_batch),
            window: Window { warmup: WARMUP, length },
            seed: 0,
            spin: false,
            client_spin: ClientOptions::default().spin,
            in_flight_max: 0,
            arena_bytes: 0,
        };
        let measured = run_part(&options, Part::WHOLE, &AtomicBool::new(false), || Ok(()))?;
        let report = Report::new(measured.seconds, &measured.sessions);
        if report.total.answered_per_s < report.total.offered_per_s {
            let why = measured.sessions.into_iter().find_map(|session| session.failure);
            return Err(format!("requests were not answered: {}", why.unwrap_or("they were dropped".into())).into());
        }
        Ok(vec![report.total.answered_per_s, report.total.mean_batch.unwrap_or(0.0)])
    }
}

/// Calls `once` in a loop, on a thread of the device's core; items per second, and the size of the batches.
fn bare(
    core: usize,
    length: Duration,
    items: u32,
    mut once: impl FnMut() -> Result<(), String> + Send,
) -> Result<Vec<f64>, Failure> {
    let batches_per_s = std::thread::scope(|scope| {
        let looping = scope.spawn(move || {
            cores::pin(core).map_err(|error| error.to_string())?;
            let warm = Instant::now();
            while warm.elapsed() < WARMUP {
                once()?;
            }
            let (start, mut batches) = (Instant::now(), 0u32);
            while start.elapsed() < length {
                once()?;
                batches += 1;
            }
            Ok::<f64, String>(f64::from(batches) / start.elapsed().as_secs_f64())
        });
        looping.join().unwrap_or_else(|_| Err("the engine panicked".into()))
    })?;
    Ok(vec![batches_per_s * f64::from(items), f64::from(items)])
}

fn execute(network: &mut dyn Network, batch: &mut Batch) -> Result<(), String> {
    for request in &mut batch.requests {
        request.outcome = rota_device::Outcome::Pending;
    }
    network.execute(batch);
    let bad = batch.requests.iter().find(|request| request.outcome != rota_device::Outcome::Done);
    bad.map_or(Ok(()), |request| Err(format!("{:?}", request.outcome)))
}

fn host_tensor(array: &Array) -> Result<HostTensor, Failure> {
    let name = format!("{:?}", array.dtype).to_ascii_lowercase();
    let dtype = DType::from_name(&name).ok_or_else(|| format!("{name} is no element type of a device"))?;
    let tensor = Shape::new(&array.dims).and_then(|shape| HostTensor::from_bytes(dtype, shape, &array.bytes));
    tensor.ok_or_else(|| format!("a tensor of {:?} can't be made", array.dims).into())
}

/// What matters here of a model's own settings.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct ModelToml {
    batch_symbol: Option<String>,
    shape: std::collections::BTreeMap<String, u32>,
}

impl ModelToml {
    fn read(folder: &Path) -> Result<ModelToml, Failure> {
        let file = folder.join("model.toml");
        match file.exists() {
            true => Ok(toml::from_str(&fs::read_to_string(file)?)?),
            false => Ok(ModelToml::default()),
        }
    }
}

/// The input files that the manifest beside the repository names for a model; inputs that it does not name are made.
pub fn manifest_inputs(repository: &Path, model: &str) -> Result<Vec<(String, PathBuf)>, Failure> {
    let folder = repository.parent().unwrap_or(Path::new("."));
    let file = folder.join("manifest.json");
    if !file.exists() {
        return Ok(Vec::new());
    }
    let manifest: Manifest = serde_json::from_str(&fs::read_to_string(file)?)?;
    let items = manifest.models.into_iter().filter(|entry| entry.name == model).flat_map(|entry| entry.items);
    Ok(items.flat_map(|item| item.inputs).map(|(input, file)| (input, folder.join(file))).collect())
}

#[derive(serde::Deserialize)]
struct Manifest {
    models: Vec<ManifestModel>,
}

#[derive(serde::Deserialize)]
struct ManifestModel {
    name: String,
    items: Vec<ManifestItem>,
}

#[derive(serde::Deserialize)]
struct ManifestItem {
    #[serde(default)]
    inputs: std::collections::BTreeMap<String, PathBuf>,
}
