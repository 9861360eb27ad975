//! Puts a daemon together: devices, threads, socket; and takes it apart again.

use crate::arenas::Keeper;
use crate::background::{DeviceRole, Job, Loader, Source};
use crate::config::{Config, ConfigError, DeviceSettings, EngineName, PrecisionName};
use crate::control::socket::{self, Lock, SocketError};
use crate::control::{self, Control, INBOX, Message};
use crate::poller::{self, Poller};
use crate::profiles::{Given, Store};
use crate::repository::{self, Problem};
use crate::sharing::Sharing;
use crate::wake::Wake;
use rota_device::cpu::{CpuDevice, CpuOptions};
use rota_device::cuda::driver::DriverError;
use rota_device::cuda::{CudaEngine, CudaError};
use rota_device::emulated::{self, EmulatedOptions, ProfileFileError};
use rota_device::engine::{self, EngineError};
use rota_device::{Device, Engine, Waker};
use std::io;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Why the daemon can't start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A GPU is asked for that can't be used.
    #[error("cuda device: {0}")]
    Cuda(#[from] CudaError),
    /// Batches of two devices would be in each other's way there.
    #[error("GPU {gpu} is named by two [[device]] entries, or twice by one: a GPU is one device; name it once")]
    GpuTwice { gpu: u32 },
    #[error(transparent)]
    Profiles(#[from] ProfileFileError),
    #[error("cpu device {index} on cores {cores:?}: {error}; choose among {allowed:?}")]
    Cores { index: usize, cores: Vec<usize>, error: io::Error, allowed: Vec<usize> },
    #[error("{path}: {error}; --repository names the folder that holds <model>/<version>/model.onnx")]
    Repository { path: PathBuf, error: io::Error },
    #[error("nothing to serve: name a --repository, or emulated devices in --config")]
    Nothing,
    #[error("{what}: {error}")]
    System { what: &'static str, error: io::Error },
}

/// A daemon that runs in threads of this process.
pub struct Daemon {
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
    /// True when it has drained, false when it was stopped at once.
    control: JoinHandle<io::Result<bool>>,
    socket: PathBuf,
    _lock: Lock,
}

/// Asks a daemon to stop; the second time, at once.
#[derive(Clone)]
pub struct Stop {
    inbox: Sender<Message>,
    waker: Arc<mio::Waker>,
}

impl Stop {
    pub fn stop(&self) {
        if self.inbox.send(Message::Stop).is_ok() {
            // Without the wake-up it stops at its next event.
            let _ = self.waker.wake();
        }
    }
}

impl Daemon {
    /// Starts all threads. Models are loaded while clients can already connect; a session of one that is not loaded yet is opened as
    /// soon as it is.
    pub fn start(config: &Config) -> Result<Daemon, ServeError> {
        config.check()?;
        raise_descriptor_limit();
        let socket_path = config.socket.clone().unwrap_or_else(rota_ipc::client::default_socket_path);
        let system = |what| move |error| ServeError::System { what, error };
        let wake = Arc::new(Wake::new().map_err(system("eventfd"))?);
        let waker: Waker = {
            let wake = Arc::clone(&wake);
            Arc::new(move || wake.wake())
        };
        let (devices, roles) = devices(config, &waker)?;
        let (sources, problems) = sources(config, &roles)?;
        let mode = config.socket_permissions().unwrap_or(0o600);
        let (listener, lock) = socket::bind(&socket_path, mode)?.split();

        let poll = mio::Poll::new().map_err(system("epoll"))?;
        let mio_waker = Arc::new(mio::Waker::new(poll.registry(), INBOX).map_err(system("eventfd"))?);
        let (to_control, inbox) = channel();
        let (to_poller, commands) = channel();
        let (to_loader, jobs) = channel::<Job>();
        let stop = Stop { inbox: to_control.clone(), waker: Arc::clone(&mio_waker) };

        let notify = {
            let (inbox, waker) = (to_control.clone(), Arc::clone(&mio_waker));
            move |message| {
                if inbox.send(message).is_ok() {
                    let _ = waker.wake();
                }
            }
        };
        let notices = Box::new({
            let notify = notify.clone();
            move |notice| notify(Message::Poller(notice))
        });
        let poller = Poller::new(poller_options(config), devices, commands, notices, Arc::clone(&wake));
        let poller = poller.map_err(system("epoll"))?;
        let poller_cores = cores_without_device(&roles);
        let keeper = Keeper::new(&roles);
        let engines = roles.iter().map(|role| role.engine().map(|(engine, ..)| Arc::clone(engine))).collect();
        let (to_keeper, changes) = channel();
        let loader = Loader {
            devices: roles,
            store: Store { folder: profile_cache(config) },
            default_slo: Duration::from_secs_f64(config.default_slo_ms / 1e3),
            sharing: config.prefix.then(Sharing::new),
        };
        let options = control::Options { engines, ..control_options(config, &socket_path, problems)? };
        let mut control = Control::new(options, poll, listener, inbox, to_poller, wake, (to_loader, to_keeper))
            .map_err(system("the socket can't be watched"))?;
        for source in sources {
            control.load(source);
        }
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_string()).spawn(run).map_err(system("a thread can't be started"))
        };
        let threads = vec![
            spawn(
                "rota-poller",
                Box::new({
                    let notify = notify.clone();
                    move || run_poller(poller, &poller_cores, || notify(Message::PollerDied))
                }),
            )?,
            spawn("rota-arenas", Box::new(move || keeper.run(changes)))?,
            spawn("rota-loader", Box::new(move || loader.run(jobs, |done| notify(Message::Done(done)))))?,
        ];
        let control = thread::Builder::new().name("rota-control".to_string()).spawn(move || control.run());
        let control = control.map_err(system("a thread can't be started"))?;
        Ok(Daemon { stop, threads, control, socket: socket_path, _lock: lock })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A handle that stops it from elsewhere.
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Waits until it has drained, or was stopped at once.
    pub fn join(self) -> Result<(), ServeError> {
        let ended = self.control.join().unwrap_or_else(|_| Err(io::Error::other("the control thread panicked")));
        socket::remove(&self.socket);
        let drained = ended.map_err(|error| ServeError::System { what: "the control thread", error })?;
        if drained {
            for thread in self.threads {
                if thread.join().is_err() {
                    return Err(ServeError::System { what: "a thread", error: io::Error::other("panicked") });
                }
            }
        }
        Ok(())
    }
}

fn control_options(config: &Config, socket: &Path, problems: Vec<Problem>) -> Result<control::Options, ConfigError> {
    Ok(control::Options {
        socket: socket.to_path_buf(),
        repository: config.repository.clone(),
        problems,
        limits: config.limits,
        prefix: config.prefix,
        engines: Vec::new(),
        queries: config.queries()?,
        uid: rustix::process::getuid().as_raw(),
    })
}

fn poller_options(config: &Config) -> poller::Options {
    poller::Options {
        requests_max: config.limits.requests_max,
        sessions_max: config.limits.sessions_max,
        requests_per_user: config.limits.requests_per_user,
        queries_max: config.limits.queries_max,
        runs_max: config.limits.runs_max,
        runs_per_user: config.limits.runs_per_user,
        spin: config.spin(),
        prepare_lead: Duration::from_micros(config.prepare_lead_us),
        start_lead: Duration::from_micros(config.start_lead_us),
        plan_interval: Duration::from_millis(config.plan_interval_ms),
    }
}

/// `cores`: where the poller may run; none: anywhere.
fn run_poller(poller: Poller, cores: &[usize], died: impl FnOnce()) {
    // The kernel may otherwise let a timer lie 50 µs; a failure costs only that.
    let _ = rustix::thread::set_current_timer_slack(NonZero::new(1));
    if !cores.is_empty() {
        let mut set = rustix::thread::CpuSet::new();
        cores.iter().for_each(|&core| set.set(core));
        // A failure leaves it where the kernel puts it.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
    // A daemon without its poller would hang: it ends instead, and its clients notice.
    if catch_unwind(AssertUnwindSafe(|| poller.run())).is_err() {
        died();
    }
}

/// The cores that no device executes on: a poller that wakes up on a device's core waits for its batch to end.
fn cores_without_device(roles: &[DeviceRole]) -> Vec<usize> {
    let taken = |core: &usize| {
        roles.iter().any(|role| match role {
            DeviceRole::Cpu { cores, .. } => cores.contains(core),
            DeviceRole::Cuda { .. } | DeviceRole::Emulated { .. } => false,
        })
    };
    allowed_cores().into_iter().filter(|core| !taken(core)).collect()
}

/// By device index: what executes, and what loading has to know of it.
type Devices = (Vec<Box<dyn Device>>, Vec<DeviceRole>);

/// The configured devices, and what loading has to know of each; by device index.
fn devices(config: &Config, waker: &Waker) -> Result<Devices, ServeError> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    let mut roles = Vec::new();
    let default = [DeviceSettings::Cpu { cores: Vec::new(), threads: None, engine: EngineName::Auto, profiles: None }];
    let settings = if config.device.is_empty() { &default[..] } else { &config.device[..] };
    let mut gpus_taken = Vec::new();
    for setting in settings {
        match setting {
            DeviceSettings::Cpu { cores, threads, engine, profiles } => {
                let given = given(profiles.as_deref())?;
                let (device, role) =
                    cpu_device(devices.len(), (cores, *threads, *engine, given), config.spin(), waker)?;
                devices.push(Box::new(device));
                roles.push(role);
            }
            DeviceSettings::Cuda { gpus, precision, profiles } => {
                let given = given(profiles.as_deref())?;
                for engine in cuda_engines(gpus, *precision, &mut gpus_taken)? {
                    let index = devices.len();
                    let (device, role) = cuda_device(index, engine, given.clone(), config.spin(), waker)?;
                    devices.push(Box::new(device));
                    roles.push(role);
                }
            }
            DeviceSettings::Emulated { count, profiles } => {
                let profiles: Vec<_> = emulated::read_profiles(profiles)?.into_iter().map(Arc::new).collect();
                let options = EmulatedOptions { name: format!("emulated{}", devices.len()), ..Default::default() };
                let spawned = emulated::spawn(*count as usize, options, Arc::clone(waker));
                let spawned = spawned.map_err(|error| ServeError::System {
                    what: "the emulated devices' thread can't be started",
                    error,
                })?;
                for device in spawned {
                    devices.push(Box::new(device));
                    roles.push(DeviceRole::Emulated { profiles: profiles.clone() });
                }
            }
        }
    }
    Ok((devices, roles))
}

/// The profiles of a file, or none.
fn given(file: Option<&Path>) -> Result<Arc<Given>, ProfileFileError> {
    Ok(Arc::new(file.map(Given::read).transpose()?.unwrap_or_default()))
}

fn cpu_device(
    index: usize,
    (cores, threads, engine, given): (&[usize], Option<usize>, EngineName, Arc<Given>),
    spin: Duration,
    waker: &Waker,
) -> Result<(CpuDevice, DeviceRole), ServeError> {
    let allowed = allowed_cores();
    let cores = match cores {
        // The first core is left to the poller and the clients, where there is more than one.
        [] if allowed.len() > 1 => allowed[1..].to_vec(),
        [] => allowed.clone(),
        chosen => chosen.to_vec(),
    };
    let threads = threads.unwrap_or(cores.len()).max(1);
    let opened = engine::open(&engine.choice())?;
    if let Some(why) = &opened.fell_back {
        tracing::warn!(reason = %why, "slower engine");
    }
    let options = CpuOptions {
        name: format!("cpu{index}"),
        engine: opened.engine.describe(),
        cores: cores.clone(),
        roams: false,
        threads,
        spin,
    };
    let device = CpuDevice::spawn(options, Arc::clone(waker)).map_err(|error| ServeError::Cores {
        index,
        cores: cores.clone(),
        error,
        allowed,
    })?;
    Ok((device, DeviceRole::Cpu { engine: opened.engine, cores, threads, given }))
}

/// The GPUs `ordinals`, or all of the host; `taken` are those of other settings.
fn cuda_engines(
    ordinals: &[u32],
    precision: PrecisionName,
    taken: &mut Vec<u32>,
) -> Result<Vec<CudaEngine>, ServeError> {
    let chosen: Vec<u32> = match ordinals {
        [] => CudaEngine::gpus()?.iter().map(|gpu| gpu.ordinal).collect(),
        chosen => chosen.to_vec(),
    };
    if chosen.is_empty() {
        return Err(CudaError::Driver(DriverError::NoDevice).into());
    }
    let open = |gpu: u32| {
        if taken.contains(&gpu) {
            return Err(ServeError::GpuTwice { gpu });
        }
        taken.push(gpu);
        Ok(CudaEngine::open(gpu, precision.into())?)
    };
    chosen.into_iter().map(open).collect()
}

fn cuda_device(
    index: usize,
    engine: CudaEngine,
    given: Arc<Given>,
    spin: Duration,
    waker: &Waker,
) -> Result<(CpuDevice, DeviceRole), ServeError> {
    let allowed = allowed_cores();
    let near: Vec<usize> = engine.info().near_cores().into_iter().filter(|core| allowed.contains(core)).collect();
    let name = format!("cuda{index}");
    let described = format!("GPU {}, {}", engine.info().ordinal, engine.describe());
    let options = CpuOptions { name, engine: described, cores: near, roams: true, threads: 1, spin };
    let device = CpuDevice::spawn(options, Arc::clone(waker))
        .map_err(|error| ServeError::System { what: "a GPU's thread can't be started", error })?;
    Ok((device, DeviceRole::Cuda { engine: Arc::new(engine), given }))
}

/// Cores that this process may run on.
pub fn allowed_cores() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect(),
        Err(_) => vec![0],
    }
}

/// The models to load at the start, the repository's and those of the profile files; and what is wrong with the repository.
fn sources(config: &Config, roles: &[DeviceRole]) -> Result<(Vec<Source>, Vec<Problem>), ServeError> {
    let (mut sources, mut problems) = (Vec::new(), Vec::new());
    if let Some(path) = &config.repository {
        let scanned = repository::scan(path);
        let scan = scanned.map_err(|error| ServeError::Repository { path: path.clone(), error })?;
        for problem in &scan.problems {
            tracing::error!(path = %problem.path.display(), problem = %problem.what, "not served");
        }
        for warning in &scan.warnings {
            tracing::warn!(path = %warning.path.display(), warning = %warning.what, "served with other settings");
        }
        sources.extend(scan.entries.into_iter().map(|entry| Source::Repository(Box::new(entry))));
        problems = scan.problems;
    }
    let mut emulated: Vec<_> = roles
        .iter()
        .flat_map(|role| match role {
            DeviceRole::Emulated { profiles } => profiles.clone(),
            DeviceRole::Cpu { .. } | DeviceRole::Cuda { .. } => Vec::new(),
        })
        .collect();
    // Devices of one file share its profiles.
    let mut seen = std::collections::HashSet::new();
    emulated.retain(|profile| seen.insert(Arc::as_ptr(profile)));
    sources.extend(emulated.into_iter().map(Source::Emulated));
    if sources.is_empty() && config.repository.is_none() {
        return Err(ServeError::Nothing);
    }
    Ok((sources, problems))
}

/// Where measured profiles are kept: as the settings say, else below the user's cache.
pub(crate) fn profile_cache(config: &Config) -> Option<PathBuf> {
    config.profile_cache.clone().or_else(|| {
        let from = |variable: &str| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
        from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache"))).map(|cache| cache.join("rota"))
    })
}

/// A connection takes two descriptors: as many as the system allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // A failure leaves the lower limit; connections beyond it are refused with a warning.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
