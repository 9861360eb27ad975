//! The daemon's program, started for the time of one measurement.

use crate::folder::Folder;
use crate::rounds::Failure;
use rota_ipc::client::Control;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running daemon with a folder of its own. Dropping it stops the daemon and removes the folder.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    folder: Folder,
}

impl Daemon {
    /// Starts `program` with a configuration, and with `files` (name, content) beside it; returns when it listens. Paths in
    /// the configuration are relative to their folder.
    pub fn start(program: &Path, config: &str, files: &[(&str, &str)]) -> Result<Daemon, Failure> {
        let folder = Folder::new("daemon")?;
        for (name, content) in files.iter().chain([&(CONFIG, config)]) {
            fs::write(folder.join(name), content)?;
        }
        let log = File::create(folder.join(LOG))?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(folder.join(CONFIG)).arg("--socket").arg(folder.join(SOCKET));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let child = child.map_err(|error| {
            format!("{}: {error}; build it (cargo build --release -p rota) or name it with --rota", program.display())
        })?;
        let mut daemon = Daemon { child, folder };
        daemon.wait_until_it_listens()?;
        Ok(daemon)
    }

    fn wait_until_it_listens(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        while begin.elapsed() < START_MAX {
            if Control::connect(self.socket(), Duration::from_secs(1)).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the daemon ended ({status}): {}", self.last_words()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("the daemon does not listen after {START_MAX:?}: {}", self.last_words()).into())
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join(SOCKET)
    }

    /// Processor time of all its threads so far.
    pub fn cpu_time(&self) -> Result<Duration, Failure> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split_whitespace().next().and_then(|first| first.parse::<u64>().ok());
            nanoseconds += first.ok_or_else(|| format!("'{}' is no schedstat", text.trim()))?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Memory that it holds, without what it shares with its clients.
    pub fn resident_bytes(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
            kilobytes.map(|kilobytes| kilobytes << 10).ok_or_else(|| format!("no {name} in a process's status"))
        };
        Ok(field("RssAnon")? + field("RssFile")?)
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.join(LOG)).unwrap_or_default();
        log.lines().next_back().unwrap_or("it logged nothing").to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // One that has ended is not reaped yet: its number is still its own.
            let _ = kill_process(pid, Signal::TERM);
        }
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < STOP_MAX {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon's program: the one that was named, or the one beside this program.
pub fn program(named: Option<PathBuf>) -> std::io::Result<PathBuf> {
    match named {
        Some(path) => Ok(path),
        None => Ok(std::env::current_exe()?.with_file_name("rota")),
    }
}

const CONFIG: &str = "rota.toml";
const SOCKET: &str = "rota.sock";
const LOG: &str = "log";
const START_MAX: Duration = Duration::from_secs(30);
const STOP_MAX: Duration = Duration::from_secs(5);
