//! What end-to-end tests share: a folder that goes away, a real daemon on a socket of its own, and the program as a user runs
//! it.
//!
//! ```ignore
//! let folder = Folder::new("answers");
//! let profiles = folder.write("profiles.toml", &emulated("echo", "1 = 2.0, 8 = 4.0"));
//! let daemon = Daemon::start(&folder, &emulated_device(1, &profiles));
//! let mut client = daemon.client();
//! ```

use rota_device::cuda::standin;
use rota_ipc::client::{Control, Open, Request};
use rota_ipc::{Client, ClientOptions};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The driver that is loaded instead of NVIDIA's: any number of GPUs that are none.
pub fn driver_library() -> PathBuf {
    standin::library().unwrap_or_else(|error| panic!("{error}"))
}

/// A folder of the test's own, removed when dropped.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// `name` says in the path which test it belongs to. The path is short: a socket in it must fit in 107 bytes.
    pub fn new(name: &str) -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rota-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file, and the folders that it lies in; returns its whole path.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    }

    /// Puts one of the small models of `device/tests/models` to `path`: `copy_model("mlp", "repository/mlp/1/model.onnx")`.
    pub fn copy_model(&self, model: &str, path: &str) -> PathBuf {
        self.write(path, fs::read(model_file(model)).unwrap())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// One of the small models of `device/tests/models`.
pub fn model_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../device/tests/models").join(format!("{name}.onnx"))
}

/// A `[[profile]]` of an emulated model that answers `y: f32 [batch, 4]` with its own input `x: f32 [batch, 4]`.
/// `batch_ms` as in `"1 = 2.0, 8 = 4.0"`.
pub fn emulated(model: &str, batch_ms: &str) -> String {
    format!(
        "[[profile]]\nmodel = \"{model}\"\nbatch_ms = {{ {batch_ms} }}\nmemory_mb = 10\n\
         inputs = [{{ name = \"x\", dtype = \"f32\", dims = [\"batch\", 4] }}]\n\
         outputs = [{{ name = \"y\", dtype = \"f32\", dims = [\"batch\", 4] }}]\n"
    )
}

/// The `[[device]]` of a configuration that emulates `count` devices with the models of the file `profiles`.
pub fn emulated_device(count: u32, profiles: &Path) -> String {
    format!("[[device]]\nkind = \"emulated\"\ncount = {count}\nprofiles = \"{}\"\n", profiles.display())
}

/// A daemon with two devices. One takes no time for the models "echo" and "wide", of eight items at most; the second leaves its
/// width open. The other takes two seconds for each item of "slow".
pub fn serve(folder: &Folder) -> Daemon {
    serve_with(folder, "")
}

/// As [`serve`], with more settings.
pub fn serve_with(folder: &Folder, settings: &str) -> Daemon {
    let wide = emulated("wide", "1 = 0.0, 8 = 0.0").replace("\"batch\", 4", "\"batch\", \"width\"");
    let slow = emulated("slow", "1 = 2000.0");
    let quick = folder.write("quick.toml", emulated("echo", "1 = 0.0, 8 = 0.0") + &wide);
    let slow = folder.write("slow.toml", slow);
    Daemon::start(folder, &format!("{settings}{}{}", emulated_device(1, &quick), emulated_device(1, &slow)))
}

/// The program, with nothing of this environment that would change what it does.
pub fn rota() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rota"));
    command.env_remove("ROTA_SOCKET").env_remove("ROTA_LOG").env_remove("XDG_RUNTIME_DIR").stdin(Stdio::null());
    command
}

/// A real `rota serve` in its own process. It is killed when dropped.
pub struct Daemon {
    process: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts a daemon with the settings `config` (TOML; see `daemon/src/config.rs`) and waits until every model has been loaded or
    /// has failed. Its socket, log and profiles lie in `folder`, which must outlive it; `config` names neither.
    pub fn start(folder: &Folder, config: &str) -> Daemon {
        let mut daemon = Daemon::start_only(folder, config);
        daemon.wait_until("every model is loaded", |status| status["loading"] == false);
        daemon
    }

    /// As [`Daemon::start`], but does not wait: the socket may not be there yet.
    pub fn start_only(folder: &Folder, config: &str) -> Daemon {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Daemon::start_on(folder, &folder.path().join(format!("{number}.sock")), config)
    }

    /// As [`Daemon::start_only`], on a socket that another daemon may have had before.
    pub fn start_on(folder: &Folder, socket: &Path, config: &str) -> Daemon {
        Daemon::start_in(folder, socket, config, &[])
    }

    /// As [`Daemon::start_on`], with variables in its environment.
    pub fn start_in(folder: &Folder, socket: &Path, config: &str, environment: &[(&str, &Path)]) -> Daemon {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = folder.path().join(format!("{number}.log"));
        let config = format!("profile_cache = \"profiles\"\n{config}");
        let config = folder.write(&format!("{number}.toml"), config);
        let process = rota()
            .arg("serve")
            .args([Path::new("--config"), &config, Path::new("--socket"), socket])
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Daemon { process, socket: socket.to_path_buf(), log }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A connection with shared memory.
    pub fn client(&self) -> Client {
        self.client_with(ClientOptions::default())
    }

    pub fn client_with(&self, options: ClientOptions) -> Client {
        Client::connect(&self.socket, options).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    pub fn control(&self) -> Control {
        Control::connect(&self.socket, PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    pub fn status(&self) -> serde_json::Value {
        self.control().status().unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// How many files it has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    #[track_caller]
    pub fn wait_for_open_files(&self, count: usize) {
        let begin = Instant::now();
        while self.open_files() != count {
            assert!(begin.elapsed() < PATIENCE, "{} files are open, {count} were", self.open_files());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until its status is as `done` wants it; panics with the log when that takes too long or it ended.
    pub fn wait_until(&mut self, what: &str, done: impl FnMut(&serde_json::Value) -> bool) {
        self.wait_as_long_as(PATIENCE, what, done);
    }

    /// As [`Daemon::wait_until`], for what takes long on a machine that is no GPU.
    pub fn wait_as_long_as(
        &mut self,
        patience: Duration,
        what: &str,
        mut done: impl FnMut(&serde_json::Value) -> bool,
    ) {
        let begin = Instant::now();
        loop {
            // It may not listen yet.
            let status = Control::connect(&self.socket, PATIENCE).and_then(|mut control| control.status());
            if status.as_ref().is_ok_and(&mut done) {
                return;
            }
            let ended = self.process.try_wait().unwrap();
            let log = self.log();
            assert!(ended.is_none(), "waiting until {what}, the daemon ended with {ended:?}:\n{log}");
            assert!(begin.elapsed() < patience, "{what}: not after {patience:?}, but {status:?}:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs `rota VERB …` against this daemon: `daemon.rota(&["infer", "echo"])`.
    pub fn rota(&self, arguments: &[&str]) -> Output {
        rota().args(arguments).arg("--socket").arg(&self.socket).output().unwrap()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(mut self) -> ExitStatus {
        self.terminate();
        self.wait()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Kills it with no chance to clean up.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Waits for its end, which something else brought about.
    pub fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client that does all as it should, beside others: served before, during and after whatever they do.
pub struct Witness {
    client: Client,
    request: Option<Request>,
    value: f32,
}

impl Witness {
    /// Asks the model "echo" of [`emulated`].
    pub fn new(daemon: &Daemon) -> Witness {
        let mut client = daemon.client_with(small());
        let session = client.open("echo", PATIENT).unwrap();
        let request = client.request(&session).unwrap();
        Witness { client, request: Some(request), value: 0.0 }
    }

    /// Panics unless it gets back just what it sends.
    #[track_caller]
    pub fn assert_served(&mut self) {
        self.value += 1.0;
        let mut request = self.request.take().expect("the last round brought it back");
        let values: [f32; 8] = std::array::from_fn(|i| self.value + i as f32 / 8.0);
        request.input::<f32>("x", &[2, 4]).unwrap().copy_from_slice(&values);
        let ticket = self.client.submit(request).unwrap();
        let answer = self.client.wait_for(ticket, PATIENCE).unwrap();
        let answer = answer.expect("an answer to a well-behaved client");
        assert_eq!(answer.output::<f32>("y").unwrap().data, values);
        self.request = Some(answer.into_request());
    }
}

/// A small connection.
pub fn small() -> ClientOptions {
    ClientOptions { slots: 8, arena_bytes: 64 << 10, ..ClientOptions::default() }
}

/// What a program wrote, as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Opens a session in which nothing is dropped, however slow the machine is.
pub const PATIENT: Open = Open { version: None, slo: Some(Duration::from_secs(600)) };

/// A machine that builds at the same time is slow, and nothing here is about speed.
pub const PATIENCE: Duration = Duration::from_secs(60);
