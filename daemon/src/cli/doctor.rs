//! `rota doctor`: whether this host has what a daemon needs, and what to do where it has not.

use super::connection::{Connection, TIMEOUT};
use super::output;
use super::{NEGATIVE, Outcome};
use crate::serve::allowed_cores;
use rota_device::cuda::driver::{DriverError, LIBRARY_VARIABLE};
use rota_device::cuda::{CudaEngine, CudaError, Precision};
use rota_device::{EngineChoice, engine};
use rota_ipc::client::{Control, Error};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicU32;

/// Look whether this host has what the daemon needs
#[derive(clap::Args)]
#[command(before_help = "Example: rota doctor")]
pub struct Arguments {
    /// For programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// It works, but less well than it could.
    Warn,
    /// A daemon can't do its work like this.
    Bad,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, state: State::Ok, found: found.into(), advice: None }
    }

    fn warn(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { what, state: State::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn bad(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { what, state: State::Bad, found: found.into(), advice: Some(advice.into()) }
    }
}

pub fn run(arguments: Arguments) -> Outcome {
    let socket = arguments.connection.path();
    let mut findings = vec![onnxruntime(), Finding::ok("rten", "built in")];
    findings.extend([cuda(), cores(), memory(), descriptors(), locked_memory()]);
    findings.extend([sealing(), shared_memory(), futex(), epoll(), socket_folder(&socket), daemon(&socket)]);
    if arguments.json {
        output::print_json(&findings)?;
    } else {
        output::print(&text(&findings))?;
    }
    let bad = findings.iter().any(|finding| finding.state == State::Bad);
    Ok(if bad { ExitCode::from(NEGATIVE) } else { ExitCode::SUCCESS })
}

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { what, state, found, advice } in findings {
        let state = match state {
            State::Ok => console::style("ok  ").green(),
            State::Warn => console::style("warn").yellow(),
            State::Bad => console::style("bad ").red(),
        };
        let _ = writeln!(text, "{state}  {what:width$}  {}", output::one_line(found));
        if let Some(advice) = advice {
            let _ = writeln!(text, "      {:width$}  → {advice}", "");
        }
    }
    text
}

fn onnxruntime() -> Finding {
    let what = "ONNX Runtime";
    match engine::open(&EngineChoice::OnnxRuntime(None)) {
        Ok(opened) => {
            let library = loaded_library("libonnxruntime").unwrap_or_else(|| "an unknown place".to_string());
            Finding::ok(what, format!("{}, from {library}", opened.engine.describe()))
        }
        Err(error) => Finding::warn(
            what,
            error.to_string(),
            "models run on rten, which is slower; `make demo` fetches the library, or set ROTA_ONNXRUNTIME to its path",
        ),
    }
}

/// Path of a shared library that this process has loaded.
fn loaded_library(name: &str) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| &line[start..]));
    paths.filter(|path| path.rsplit('/').next().is_some_and(|file| file.starts_with(name))).map(str::to_string).next()
}

fn cuda() -> Finding {
    let what = "CUDA";
    let there = Path::new("/dev/nvidia0").exists();
    let gpus = match CudaEngine::gpus() {
        Ok(gpus) => gpus,
        Err(error @ CudaError::Driver(DriverError::Library { .. })) => {
            let advice = format!("models run on the CPU; correct {LIBRARY_VARIABLE} or unset it");
            return Finding::warn(what, error.to_string(), advice);
        }
        Err(error) if there => {
            return Finding::warn(what, error.to_string(), "models run on the CPU until the driver is there");
        }
        Err(error) => return Finding::ok(what, format!("no GPU here ({error}); models run on the CPU")),
    };
    let names: Vec<String> = gpus.iter().map(|gpu| format!("{} ({} MB)", gpu.name, gpu.memory_bytes >> 20)).collect();
    let gpus_there = if gpus.len() == 1 { "GPU" } else { "GPUs" };
    let found = format!("{} {gpus_there}: {}", gpus.len(), names.join(", "));
    match gpus.first().map(|gpu| CudaEngine::open(gpu.ordinal, Precision::Fp32)) {
        None => Finding::ok(what, "the driver is there and has no GPU; models run on the CPU"),
        Some(Ok(_)) => {
            Finding::ok(what, format!("{found}; add a [[device]] of kind \"cuda\" to the settings to use them"))
        }
        Some(Err(CudaError::NoKernels { why })) => Finding::warn(
            what,
            found,
            format!("this program was built without CUDA kernels, so models run on the CPU: {why}"),
        ),
        Some(Err(error)) => Finding::warn(what, format!("{found}; {error}"), "models run on the CPU"),
    }
}

fn cores() -> Finding {
    let what = "cores";
    let allowed = allowed_cores();
    let found = format!("{} that this process may use: {allowed:?}", allowed.len());
    if allowed.len() > 1 {
        return Finding::ok(what, found);
    }
    Finding::warn(what, found, "the daemon's poller and its device share one core; allow two or more (taskset, cpuset)")
}

fn memory() -> Finding {
    let what = "memory";
    let Some(available) = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_mb(&text)) else {
        return Finding::warn(what, "/proc/meminfo says nothing", "mount /proc");
    };
    let found = format!("{available} MB available");
    match available {
        ..256 => Finding::bad(what, found, "a small model with its engine takes a few hundred MB; end other programs"),
        256..1024 => Finding::warn(what, found, "enough for small models only"),
        _ => Finding::ok(what, found),
    }
}

fn available_mb(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

fn descriptors() -> Finding {
    let what = "open files";
    // The daemon raises its own limit to the hard one.
    let Some(most) = getrlimit(Resource::Nofile).maximum else { return Finding::ok(what, "no limit") };
    let found = format!("{most} at most (hard limit)");
    match most {
        ..64 => Finding::bad(what, found, "each client takes two; raise it (ulimit -Hn, LimitNOFILE=)"),
        64..1024 => Finding::warn(what, found, "each client takes two; raise it for many (ulimit -Hn, LimitNOFILE=)"),
        _ => Finding::ok(what, found),
    }
}

fn locked_memory() -> Finding {
    let found = match getrlimit(Resource::Memlock).maximum {
        Some(most) => format!("{} MB at most; only GPUs will need it", most >> 20),
        None => "no limit".to_string(),
    };
    Finding::ok("locked memory", found)
}

/// A client must not be able to cut memory away under the daemon.
fn sealing() -> Finding {
    let what = "memfd seals";
    let cut = || -> rustix::io::Result<bool> {
        let memory = rustix::fs::memfd_create("rota-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&memory, 4096)?;
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(rustix::fs::ftruncate(&memory, 0).is_ok())
    };
    let advice = "shared memory with clients needs Linux 5.1 or later with memfd_create; a sandbox may forbid it";
    match cut() {
        Ok(false) => Finding::ok(what, "sealed memory can't be cut"),
        Ok(true) => Finding::bad(what, "sealed memory could be cut", advice),
        Err(error) => Finding::bad(what, error.to_string(), advice),
    }
}

/// What a client that connects is given.
fn shared_memory() -> Finding {
    let what = "shared memory";
    match rota_ipc::server::Connection::create(rota_ipc::wire::SLOTS_MIN, 1 << 20) {
        Ok(_) => Finding::ok(what, "the regions of a connection can be made"),
        Err(error) => Finding::bad(what, error.to_string(), "Linux 5.1 or later has the seals that it needs"),
    }
}

fn futex() -> Finding {
    let word = AtomicU32::new(0);
    match rustix::thread::futex::wake(&word, rustix::thread::futex::Flags::empty(), 1) {
        Ok(_) => Finding::ok("futex", "works"),
        Err(error) => Finding::bad("futex", error.to_string(), "clients are woken by it; a sandbox may forbid it"),
    }
}

fn epoll() -> Finding {
    match rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC) {
        Ok(_) => Finding::ok("epoll", "works"),
        Err(error) => Finding::bad("epoll", error.to_string(), "the daemon sleeps on it; a sandbox may forbid it"),
    }
}

fn socket_folder(socket: &Path) -> Finding {
    let what = "socket folder";
    let whole = std::path::absolute(socket).unwrap_or_else(|_| socket.to_path_buf());
    // The daemon makes the folders that are missing: the nearest one that is there has to let it.
    let Some(folder) = whole.ancestors().skip(1).find(|folder| folder.exists()) else {
        return Finding::bad(what, format!("{} has no folder", whole.display()), "choose another --socket");
    };
    // Trying is the only proof: permissions say nothing of read-only mounts, nor to root.
    let trial = folder.join(format!(".rota-doctor-{}", std::process::id()));
    let tried = std::fs::File::create_new(&trial).and_then(|_| std::fs::remove_file(&trial));
    match tried {
        Ok(()) => Finding::ok(what, format!("{} can be written, for {}", folder.display(), socket.display())),
        Err(error) => Finding::bad(
            what,
            format!("{}: {error}", folder.display()),
            "choose a --socket where this user may write, or set ROTA_SOCKET or XDG_RUNTIME_DIR",
        ),
    }
}

fn daemon(socket: &Path) -> Finding {
    let what = "daemon";
    match Control::connect(socket, TIMEOUT).and_then(|mut control| control.status()) {
        Ok(status) => {
            let version = status["rota"].as_str().unwrap_or("?");
            let found = format!("rota {version} with pid {} serves {}", status["pid"], socket.display());
            match version == env!("CARGO_PKG_VERSION") {
                true => Finding::ok(what, found),
                false => {
                    let own = env!("CARGO_PKG_VERSION");
                    Finding::warn(what, found, format!("this program is version {own}; restart the daemon"))
                }
            }
        }
        Err(Error::NoDaemon { .. }) => Finding::ok(what, format!("none runs on {}", socket.display())),
        Err(error @ Error::Permission { .. }) => Finding::warn(what, error.to_string(), "ask its owner"),
        Err(error) => Finding::bad(what, error.to_string(), "stop it and start it anew; its log says more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_its_unit() {
        assert_eq!(available_mb("MemTotal:       8000000 kB\nMemAvailable:    2097152 kB\n"), Some(2048));
        assert_eq!(available_mb("MemTotal: 8000000 kB\n"), None);
    }

    #[test]
    fn a_folder_that_is_missing_is_judged_by_the_one_above_it() {
        let folder = std::env::temp_dir();
        assert_eq!(socket_folder(&folder.join("not/there/rota.sock")).state, State::Ok);
        assert_eq!(socket_folder(Path::new("/proc/rota.sock")).state, State::Bad);
    }
}
