//! The demo's daemon and the folder that it works in; both gone when the demo ends, however it ends.

use super::{Failure, Interrupted};
use rota_ipc::client::Control;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A folder for the socket, the log and inputs, removed when dropped. The profiles that the daemon measures lie in the build's
/// folder beside the program, so that the next demo starts at once.
pub struct Workshop {
    folder: PathBuf,
    profiles: PathBuf,
}

impl Workshop {
    pub fn new() -> Result<Workshop, Failure> {
        let program = std::env::current_exe()?;
        let beside = program.parent().unwrap_or(Path::new(".")).join("rota-demo");
        let folder = std::env::temp_dir().join(format!("rota-demo-{}", std::process::id()));
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Workshop { folder, profiles: beside })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// `rota serve` in a process of its own, which also ends when this one does.
pub struct DaemonProcess {
    process: Child,
    socket: PathBuf,
    log: PathBuf,
}

/// How long a daemon may take to answer what waits when it is told to stop.
const STOP_MAX: Duration = Duration::from_secs(10);

impl DaemonProcess {
    /// `settings`: its devices.
    pub fn start(workshop: &Workshop, repository: &Path, settings: &str) -> Result<DaemonProcess, Failure> {
        let repository = repository.canonicalize().map_err(|error| format!("{}: {error}", repository.display()))?;
        let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
        let config = format!(
            "repository = {}\nprofile_cache = {}\n{settings}",
            quoted(&repository),
            quoted(&workshop.profiles),
        );
        let config_path = workshop.folder.join("rota.toml");
        fs::write(&config_path, config)?;
        let socket = workshop.folder.join("rota.sock");
        let log = workshop.folder.join("log");
        let process = Command::new(std::env::current_exe()?)
            .args(["serve", "--die-with-parent", "--config"])
            .arg(&config_path)
            .arg("--socket")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        Ok(DaemonProcess { process, socket, log })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until every model is served; says which engine serves them and how long the first start took.
    pub fn wait_until_loaded(&mut self, interrupted: &Interrupted) -> Result<(), Failure> {
        let begin = Instant::now();
        let terminal = std::io::stdout().is_terminal();
        let mut said = 0;
        loop {
            interrupted.check()?;
            if let Some(status) = self.process.try_wait()? {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let why = log.lines().rev().find_map(|line| line.strip_prefix("rota: "));
                return Err(match why {
                    Some(why) => format!("the demo's daemon can't start: {why}").into(),
                    None => format!("the demo's daemon ended ({status}): {}", log.trim_end()).into(),
                });
            }
            // It may not listen yet.
            let status = Control::connect(&self.socket, Duration::from_secs(10)).and_then(|mut c| c.status());
            if let Ok(status) = status {
                let models = status["models"].as_array().cloned().unwrap_or_default();
                let ready = models.iter().filter(|m| m["state"] != "loading").count();
                if terminal && ready != said {
                    print!("\r\x1b[Kloading and profiling: {ready} of {} models", models.len());
                    std::io::stdout().flush()?;
                    said = ready;
                }
                if status["loading"] == false {
                    if terminal {
                        print!("\r\x1b[K");
                    }
                    return self.say_what_is_served(&status, begin.elapsed());
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn say_what_is_served(&self, status: &serde_json::Value, took: Duration) -> Result<(), Failure> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        if let Some(line) = log.lines().find(|line| line.contains("slower engine")) {
            println!("{}", line.split_once("reason=").map_or(line, |(_, reason)| reason));
        }
        let devices = status["devices"].as_array().cloned().unwrap_or_default();
        let devices: Vec<&str> = devices.iter().filter_map(|d| d["description"].as_str()).collect();
        println!("a daemon serves on {} (ready after {:.1} s)", devices.join("; "), took.as_secs_f64());
        for model in status["models"].as_array().into_iter().flatten().filter(|m| m["state"] == "failed") {
            println!("not served: {}: {}", model["name"], model["error"]);
        }
        Ok(())
    }

    /// Tells it to stop and waits until it has; kills it when that takes too long.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let begin = Instant::now();
        while begin.elapsed() < STOP_MAX {
            match self.process.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                _ => return,
            }
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}
