//! The stand-in driver with settings of a test's own, and what it writes down.
#![allow(dead_code, reason = "not every test reads the trace")]

use rota_device::cuda::{driver, standin};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Runs `test` in a process of its own with these settings, since a process has one driver, which reads them once. The test is entered
/// twice: the first time this starts it again and says whether it passed; the second time it returns true, and the test goes on.
pub fn has_settings(test: &str, settings: &[(&str, &str)]) -> bool {
    const SET: &str = "ROTA_TEST_HAS_SETTINGS";
    if std::env::var_os(SET).is_some() {
        return true;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args([test, "--exact", "--nocapture", "--include-ignored"]).env(SET, "1");
    let output = again.envs(settings.iter().copied()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// The stand-in, loaded as this process's driver.
pub fn open() -> driver::Driver {
    let library = standin::library().unwrap_or_else(|error| panic!("{error}"));
    driver::open_library(Some(&library)).unwrap()
}

/// A file that is gone with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str, content: &str) -> Scratch {
        Scratch::write(name, content.as_bytes())
    }

    pub fn write(name: &str, content: &[u8]) -> Scratch {
        let file = std::env::temp_dir().join(format!("rota-{name}-{}", std::process::id()));
        std::fs::write(&file, content).unwrap();
        Scratch(file)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    CopiesIn,
    Kernels,
    CopiesOut,
}

/// A line of the trace: what an engine did. Times are virtual, since the driver was opened.
#[derive(Clone, Debug)]
pub struct Done {
    pub engine: Engine,
    pub name: String,
    pub stream: u64,
    /// Work that was asked for by one call has one number.
    pub call: u64,
    /// The host's time at the call.
    pub asked: Duration,
    pub begin: Duration,
    pub end: Duration,
    /// 0 for kernels.
    pub bytes: u64,
}

/// The trace of this process so far: the driver writes each line at the call.
pub fn written() -> Vec<Done> {
    trace(Path::new(&std::env::var_os("ROTA_STANDIN_TRACE").unwrap()))
}

/// What GPU 0 did, in the order in which it was asked for.
pub fn trace(file: &Path) -> Vec<Done> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|line| line.trim_end_matches(',')).filter(|line| line.starts_with('{'));
    let events = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.filter(|event| event["ph"] == "X" && event["pid"] == 0).map(|event| done(&event)).collect()
}

fn done(event: &serde_json::Value) -> Done {
    let time =
        |microseconds: &serde_json::Value| Duration::from_nanos((microseconds.as_f64().unwrap() * 1e3).round() as u64);
    let (args, begin) = (&event["args"], time(&event["ts"]));
    Done {
        engine: [Engine::CopiesIn, Engine::Kernels, Engine::CopiesOut][event["tid"].as_u64().unwrap() as usize],
        name: event["name"].as_str().unwrap().to_owned(),
        stream: args["stream"].as_u64().unwrap(),
        call: args["call"].as_u64().unwrap(),
        asked: time(&args["asked"]),
        begin,
        end: begin + time(&event["dur"]),
        bytes: args["bytes"].as_u64().unwrap(),
    }
}
