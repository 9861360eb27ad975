//! Whatever takes long: loading a model on every device, checking how it batches, profiling it; finding what models share;
//! planning.

use crate::model::Model;
use crate::planning::{self, Asked, Planned};
use crate::profiles::{Given, Key, Store};
use crate::repository::{self, Entry, Settings};
use crate::sharing::{Grouped, Sharing};
use rota_device::check::{self, Checked};
use rota_device::emulated::{EmulatedNetwork, EmulatedProfile};
use rota_device::{
    CompileOptions, Engine, EngineKind, Hints, Network, RunError, Shape, ShapeClass, Signature, TensorSpec, profile,
    sample,
};
use rota_sched::{ModelId, Profile};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// What is to be done; one after the other.
pub enum Job {
    /// A model, under `id`.
    Load {
        id: ModelId,
        source: Source,
    },
    /// What the models that are served share.
    Group {
        ready: Vec<Arc<Model>>,
        /// Numbers for new groups, half as many as models.
        ids: Vec<ModelId>,
    },
    Plan(Asked),
}

/// A job that was done.
pub enum Done {
    Loaded(Loaded),
    Grouped(Grouped),
    Planned(Planned),
}

/// Where a model comes from.
#[derive(Clone)]
pub enum Source {
    Repository(Box<Entry>),
    /// A model of an emulated device's profile file, served by the devices of that file.
    Emulated(Arc<EmulatedProfile>),
}

impl Source {
    pub fn name(&self) -> &str {
        match self {
            Source::Repository(entry) => &entry.name,
            Source::Emulated(profile) => &profile.model,
        }
    }

    pub fn version(&self) -> u64 {
        match self {
            Source::Repository(entry) => entry.version,
            Source::Emulated(_) => 1,
        }
    }
}

/// How a job ended: the model and its networks by device index, or why not.
pub struct Loaded {
    pub name: String,
    pub version: u64,
    pub result: Result<Ready, String>,
}

/// By device index; `None` where the device does not serve it.
pub type Networks = Vec<Option<Box<dyn Network>>>;

pub type Ready = (Arc<Model>, Networks);

/// What loading needs to know of a device.
#[derive(Clone)]
pub enum DeviceRole {
    Cpu {
        engine: Arc<dyn Engine>,
        cores: Vec<usize>,
        threads: usize,
        given: Arc<Given>,
    },
    /// A GPU, with our own kernels.
    Cuda {
        engine: Arc<dyn Engine>,
        given: Arc<Given>,
    },
    /// The models of its profile file.
    Emulated {
        profiles: Vec<Arc<EmulatedProfile>>,
    },
}

/// An engine, and the cores and threads that it runs models on.
type Serves<'a> = (&'a Arc<dyn Engine>, &'a [usize], usize);

impl DeviceRole {
    /// Whether it serves this emulated model.
    pub fn emulates(&self, profile: &Arc<EmulatedProfile>) -> bool {
        match self {
            DeviceRole::Emulated { profiles } => profiles.iter().any(|own| Arc::ptr_eq(own, profile)),
            DeviceRole::Cpu { .. } | DeviceRole::Cuda { .. } => false,
        }
    }

    /// What loads model files for the device, and the cores and threads that it runs them on; `None`: it serves no files.
    pub fn engine(&self) -> Option<Serves<'_>> {
        match self {
            DeviceRole::Cpu { engine, cores, threads, .. } => Some((engine, cores, *threads)),
            DeviceRole::Cuda { engine, .. } => Some((engine, &[], 1)),
            DeviceRole::Emulated { .. } => None,
        }
    }

    /// The profiles that its settings give of model files; what they do not name is measured.
    pub fn given(&self) -> Option<&Given> {
        match self {
            DeviceRole::Cpu { given, .. } | DeviceRole::Cuda { given, .. } => Some(given),
            DeviceRole::Emulated { .. } => None,
        }
    }

    pub fn is_gpu(&self) -> bool {
        matches!(self, DeviceRole::Cuda { .. })
    }
}

/// The thread's whole state.
pub struct Loader {
    pub devices: Vec<DeviceRole>,
    pub store: Store,
    /// SLO of models that name none; zero: from ℓ(1).
    pub default_slo: Duration,
    /// What models share; `None`: each is served whole.
    pub sharing: Option<Sharing>,
}

/// Batches are profiled up to this size when `model.toml` gives none.
pub const MAX_BATCH_DEFAULT: u32 = 32;
/// SLO of a model that names none: this many times ℓ(1), and not less than `SLO_MIN`.
const SLO_FACTOR: u32 = 8;
const SLO_MIN: Duration = Duration::from_millis(10);
/// A model that was unloaded has given back its memory by then, or executes for longer.
const LEAVING_MAX: Duration = Duration::from_secs(10);
/// Profiling has time.
const PROFILING: i32 = 19;
/// A plan, or a network's launches, takes a fraction of a second, which must not become a minute on a busy host.
const PLANNING: i32 = 10;

impl Loader {
    /// Works until nobody can send a job any more.
    pub fn run(mut self, jobs: Receiver<Job>, done: impl Fn(Done)) {
        for job in jobs {
            done(match job {
                Job::Load { id, source } => Done::Loaded(self.load_source(id, &source)),
                Job::Group { ready, ids } => Done::Grouped(self.group(&ready, ids)),
                Job::Plan(asked) => {
                    let planned = with_niceness(PLANNING, || planning::plan(&asked));
                    Done::Planned(planned.expect("a planner that panics is caught, and makes no plan"))
                }
            });
        }
    }

    fn group(&mut self, ready: &[Arc<Model>], ids: Vec<ModelId>) -> Grouped {
        let Some(sharing) = &mut self.sharing else { return Grouped { unused: ids, ..Grouped::default() } };
        let mut grouped = sharing.group(ready, ids, &self.devices, &self.store);
        for (model, networks) in grouped.add.iter_mut().chain(&mut grouped.whole) {
            let constants = vec![None; model.profiled.len()];
            let class = ShapeClass { inputs: model.profiled.clone(), constants };
            for network in networks.iter_mut().flatten() {
                if let Err(error) = warm(&mut **network, &class) {
                    tracing::warn!(model = %model.name, %error, "not all is ready; its first batches take longer");
                }
            }
        }
        rota_device::cpu::release_memory();
        grouped
    }

    fn load_source(&mut self, id: ModelId, source: &Source) -> Loaded {
        // What is unloaded for it may be all that there is room for.
        rota_device::cpu::wait_for_leaving(LEAVING_MAX);
        let result = match source {
            Source::Repository(entry) => self.load(id, entry),
            Source::Emulated(profile) => self.load_emulated(id, profile),
        };
        Loaded { name: source.name().to_string(), version: source.version(), result }
    }

    fn load(&mut self, id: ModelId, entry: &Entry) -> Result<Ready, String> {
        let digest = repository::digest(&entry.file).map_err(|error| format!("{}: {error}", entry.file.display()))?;
        let (mut networks, mut profiles): (Networks, Vec<Option<Profile>>) = (Vec::new(), Vec::new());
        let mut checked: Option<Checked> = None;
        let mut refused: Vec<(String, String)> = Vec::new();
        for device in &self.devices {
            let served = device.engine().and_then(|engine| {
                let served = self.on_device((device, engine), entry, &digest, &mut checked);
                served.map_err(|error| refused.push((engine.0.describe(), error))).ok()
            });
            let (network, profile) = served.unzip();
            networks.push(network);
            profiles.push(profile);
        }
        let Some(checked) = checked.filter(|_| networks.iter().any(Option::is_some)) else {
            let none = "no device serves model files: the devices are all emulated; add a [[device]] of kind \"cpu\" or \"cuda\"";
            return Err(refused.into_iter().next().map_or_else(|| none.to_string(), |(_, error)| error));
        };
        // A GPU may lack the kernels or the memory that another device has.
        for (device, error) in refused {
            tracing::warn!(model = %entry.name, version = entry.version, %device, %error, "not served on this device");
        }
        if let Some(finding) = &checked.finding {
            tracing::warn!(model = %entry.name, version = entry.version, finding = %finding, "checked on load");
        }
        let shapes = profiled_shapes(&checked);
        let memory_bytes = networks.iter().flatten().map(|n| n.memory_bytes()).max().unwrap_or(0);
        let signature = checked.signature.clone();
        let model = Arc::new(self.model(id, entry, digest, signature, shapes, profiles, memory_bytes));
        // What others would share with it they compute in other numbers.
        let apart = entry.settings.precision.is_some() && self.devices.iter().any(DeviceRole::is_gpu);
        if let (Some(sharing), Some(network), false) = (&mut self.sharing, networks.iter_mut().flatten().next(), apart)
        {
            sharing.note(&model, entry, &checked, &mut **network);
        }
        Ok((model, networks))
    }

    /// The model as one device serves it, and ℓ(b) there. How a model batches is its own property: the first device that runs it finds
    /// it out.
    fn on_device(
        &self,
        (device, (engine, cores, threads)): (&DeviceRole, Serves<'_>),
        entry: &Entry,
        digest: &str,
        checked: &mut Option<Checked>,
    ) -> Result<(Box<dyn Network>, Profile), String> {
        let options = compile_options(&entry.settings, cores, threads);
        let mut network = engine.compile(&entry.file, &options).map_err(|error| error.to_string())?;
        let checked = match checked {
            Some(checked) => checked,
            None => {
                let most = entry.settings.max_batch.unwrap_or(MAX_BATCH_DEFAULT);
                let found = check::check_up_to(most, &mut *network, &hints(&entry.settings));
                checked.insert(found.map_err(|error| format!("{}: {error}", entry.file.display()))?)
            }
        };
        network.set_signature(checked.signature.clone());
        let class = sample::class_of(&checked.signature, &checked.hints);
        let class = class.ok_or_else(|| format!("{}: its inputs are too large", entry.file.display()))?;
        warm(&mut *network, &class).map_err(|error| format!("{}: {error}", entry.file.display()))?;
        let shapes = profiled_shapes(checked);
        let key = Key { digest, engine: &engine.describe_with(&options), threads, shapes: &shapes };
        let batches = checked.signature.batches();
        let most = if batches { entry.settings.max_batch.unwrap_or(MAX_BATCH_DEFAULT) } else { 1 };
        let profile = match device.given().and_then(|given| given.whole(&entry.name, most)) {
            Some(given) => given,
            None => self.profile(entry, &key, &mut *network, (checked, most))?,
        };
        let profile = if engine.kind() == EngineKind::Cuda { stepped(&profile)? } else { profile };
        Ok((network, profile))
    }

    #[expect(clippy::too_many_arguments, reason = "each is a field of the model, and this is its one constructor")]
    fn model(
        &self,
        id: ModelId,
        entry: &Entry,
        digest: String,
        signature: Signature,
        profiled: Vec<Shape>,
        profiles: Vec<Option<Profile>>,
        memory_bytes: u64,
    ) -> Model {
        let max_batch = profiles.iter().flatten().map(Profile::max_batch).max().unwrap_or(1);
        let mut model = Model {
            id,
            name: entry.name.clone(),
            version: entry.version,
            digest,
            signature,
            max_batch,
            default_slo: Duration::ZERO,
            weight: entry.settings.weight.unwrap_or(1.0),
            memory_bytes,
            profiled,
            profile_scales: true,
            profiles,
            group: None,
        };
        model.default_slo = match entry.settings.slo_ms {
            Some(ms) => Duration::from_secs_f64(ms / 1e3),
            None if !self.default_slo.is_zero() => self.default_slo,
            None => (model.batch_of_one() * SLO_FACTOR).max(SLO_MIN),
        };
        model
    }

    /// ℓ(b) as kept from an earlier run, or as measured now.
    fn profile(
        &self,
        entry: &Entry,
        key: &Key<'_>,
        network: &mut dyn Network,
        (checked, most): (&Checked, u32),
    ) -> Result<Profile, String> {
        let points = match self.store.read(key, most) {
            Some(points) => points,
            None => {
                tracing::info!(model = %entry.name, version = entry.version, max_batch = most, "profiling");
                let measured = measure(network, &checked.hints, most, profile::Budget::default());
                let measured = measured.map_err(|e| format!("{}: {e}", entry.file.display()))?;
                if let Err(error) = self.store.write(key, most, &measured) {
                    tracing::warn!(%error, "the profile can't be kept; it will be measured again at the next start");
                }
                measured
            }
        };
        Profile::new(&points).map_err(|error| error.to_string())
    }

    fn load_emulated(&mut self, id: ModelId, profile: &Arc<EmulatedProfile>) -> Result<Ready, String> {
        // A device that takes no time still has a profile: the shortest that there is.
        let points: Vec<(u32, Duration)> =
            profile.pace.points().iter().map(|&(b, latency)| (b, latency.max(Duration::from_nanos(1)))).collect();
        let pace = Profile::new(&points).map_err(|error| format!("model \"{}\": {error}", profile.model))?;
        let served: Vec<bool> = self.devices.iter().map(|device| device.emulates(profile)).collect();
        let network = || Box::new(EmulatedNetwork::new(profile)) as Box<dyn Network>;
        let networks = served.iter().map(|s| s.then(network)).collect();
        let profiles = served.iter().map(|s| s.then(|| pace.clone())).collect();
        let entry =
            Entry { name: profile.model.clone(), version: 1, file: Default::default(), settings: Settings::default() };
        let shape = |spec| sample::shape(spec, 0, &Hints::default(), 1).unwrap_or_default();
        let profiled = profile.signature.inputs.iter().map(shape).collect();
        let signature = profile.signature.clone();
        let model = self.model(id, &entry, String::new(), signature, profiled, profiles, profile.memory_bytes);
        let model = Arc::new(Model { profile_scales: false, ..model });
        if let Some(sharing) = &mut self.sharing {
            sharing.note_emulated(&model, profile);
        }
        Ok((model, networks))
    }
}

/// The profile of a device that runs a batch in the next larger of the sizes that were measured: a step from each to the next.
pub(crate) fn stepped(profile: &Profile) -> Result<Profile, String> {
    let most = profile.max_batch();
    let sizes = profile::doubling(most);
    let mut points = Vec::with_capacity(2 * sizes.len());
    let mut before = 0;
    for size in sizes {
        let latency = profile.latency(size).ok_or("a profile has a gap")?;
        // From the first batch that needs this size.
        points.extend([before + 1, size].into_iter().filter(|&batch| batch > before).map(|batch| (batch, latency)));
        before = size;
    }
    points.dedup();
    Profile::new(&points).map_err(|error| error.to_string())
}

/// How a model of the repository is compiled for `cores`, with its settings.
pub fn compile_options(settings: &Settings, cores: &[usize], threads: usize) -> CompileOptions {
    let axis = |axis: i32| usize::try_from(axis).ok();
    CompileOptions {
        threads,
        cores: cores.to_vec(),
        max_batch: Some(settings.max_batch.unwrap_or(MAX_BATCH_DEFAULT)),
        batch_symbol: settings.batch_symbol.clone(),
        batch_axes: settings.batch_axis.iter().map(|(name, &a)| (name.clone(), axis(a))).collect(),
        precision: settings.precision.map(Into::into),
        stack_members: 0,
    }
}

/// What `model.toml` says about the inputs, in the devices' words: `"input:axis"` is their `"input.axis"`.
pub fn hints(settings: &Settings) -> Hints {
    let name = |key: &str| match key.rsplit_once(':') {
        Some((input, axis)) if axis.parse::<usize>().is_ok() => format!("{input}.{axis}"),
        _ => key.to_string(),
    };
    Hints {
        sizes: settings.shape.iter().map(|(key, &size)| (name(key), size)).collect(),
        ranges: settings.range.iter().map(|(key, &[low, high])| (key.clone(), (low as f64, high as f64))).collect(),
    }
}

/// The shape class that is checked and profiled: per input, the batch axis holding 0.
fn profiled_shapes(checked: &Checked) -> Vec<Shape> {
    let shape = |spec: &TensorSpec| sample::shape(spec, 0, &checked.hints, 1).unwrap_or_default();
    checked.signature.inputs.iter().map(shape).collect()
}

/// Has a network make what its batches need, before it serves.
fn warm(network: &mut dyn Network, class: &ShapeClass) -> Result<(), String> {
    let warmed = with_niceness(PLANNING, || network.warm(class));
    warmed.unwrap_or_else(|_| Err(RunError::Engine("it panicked".to_string()))).map_err(|error| error.to_string())
}

/// ℓ(b) of 1, 2, 4 … `most` items, measured at no cost to those that are served.
pub(crate) fn measure(
    network: &mut dyn Network,
    hints: &Hints,
    most: u32,
    budget: profile::Budget,
) -> Result<Vec<(u32, Duration)>, String> {
    let sizes = profile::doubling(most);
    let measuring = || profile::measure(network, hints, &sizes, budget, &mut |_| {});
    let points =
        with_niceness(PROFILING, measuring).map_err(|_| "the engine panicked while it was profiled".to_string())?;
    Ok(points.map_err(|e| e.to_string())?.into_iter().map(|p| (p.batch, p.latency)).collect())
}

/// Works on a thread of low priority, so that it costs the requests that are being served nothing. An error when that panics.
fn with_niceness<T: Send>(niceness: i32, work: impl FnOnce() -> T + Send) -> std::thread::Result<T> {
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            // Niceness is a thread's own on Linux; ours ends with the thread.
            let _ = rustix::process::setpriority_process(None, niceness);
            work()
        });
        working.join()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stepped_profile_takes_as_long_as_the_next_measured_size() {
        let ms = Duration::from_millis;
        let measured = Profile::new(&[(1, ms(10)), (2, ms(12)), (4, ms(16)), (6, ms(20))]).unwrap();
        let stepped = stepped(&measured).unwrap();
        let times: Vec<u64> = (1..=6).map(|batch| stepped.latency(batch).unwrap().as_millis() as u64).collect();
        assert_eq!(times, [10, 12, 16, 16, 20, 20]);
    }
}
