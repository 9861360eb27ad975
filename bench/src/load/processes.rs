//! A load from several processes: the program starts itself, and adds up what they measured.
//!
//! A part connects, writes `ready`, and starts when a line comes: so all start together. Its last line is its result.

use super::arrivals::Part;
use super::{LoadError, Measured, Options, listen, run_part};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Runs one part for the process that started us.
pub fn run_as_part(options: &Options, part: Part, stop: &Arc<AtomicBool>) -> Result<(), LoadError> {
    // Without its parent nobody reads the result. It fails only for a signal that does not exist.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
    let measured = run_part(options, part, stop, || {
        listen(stop)?;
        writeln!(std::io::stdout(), "{READY}")?;
        std::io::stdin().read_line(&mut String::new())?;
        Ok(())
    })?;
    let result = serde_json::to_string(&measured).map_err(std::io::Error::from)?;
    Ok(writeln!(std::io::stdout(), "{result}")?)
}

/// Runs `count` parts and adds up their results. Each is this very command line with its part appended.
pub fn run_parts(count: u32, stop: &Arc<AtomicBool>) -> Result<Measured, LoadError> {
    let mut parts = Vec::with_capacity(count as usize);
    for index in 0..count {
        parts.push(Process::start(Part { index, count })?);
    }
    for part in &mut parts {
        let line = part.line()?;
        if line != READY {
            return Err(LoadError::Process(format!("it said '{line}' before it was ready")));
        }
    }
    listen(stop)?;
    for part in &mut parts {
        part.go()?;
    }
    let finished = &AtomicBool::new(false);
    let results: Result<Vec<Measured>, LoadError> = std::thread::scope(|scope| {
        let pids: Vec<Pid> = parts.iter().filter_map(|part| Pid::from_raw(part.child.id() as i32)).collect();
        scope.spawn(move || forward_stop(stop, finished, &pids));
        let results = parts.iter_mut().map(Process::result).collect();
        finished.store(true, Ordering::Release);
        results
    });
    Ok(merge(results?))
}

/// Ends the parts when this process is told to end: a signal from a terminal reaches all, one from a program only us.
fn forward_stop(stop: &AtomicBool, finished: &AtomicBool, pids: &[Pid]) {
    while !finished.load(Ordering::Acquire) {
        if stop.load(Ordering::Relaxed) {
            for pid in pids {
                // A part that has ended needs none; it is reaped only after `finished`.
                let _ = kill_process(*pid, Signal::INT);
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(part: Part) -> Result<Process, LoadError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(std::env::args_os().skip(1)).arg("--part").arg(part.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().expect("it was piped");
        Ok(Process { child, lines: BufReader::new(stdout).lines() })
    }

    fn line(&mut self) -> Result<String, LoadError> {
        match self.lines.next() {
            Some(line) => Ok(line?),
            // What went wrong it has written on the standard error that it shares with us.
            None => Err(LoadError::Process("it ended early".into())),
        }
    }

    fn go(&mut self) -> Result<(), LoadError> {
        self.child.stdin.take().expect("it was piped").write_all(b"go\n")?;
        Ok(())
    }

    fn result(&mut self) -> Result<Measured, LoadError> {
        let line = self.line()?;
        serde_json::from_str(&line).map_err(|error| LoadError::Process(format!("its result can't be read: {error}")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Of one that has ended there is nothing left to kill; its status says no more than its result.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn merge(results: Vec<Measured>) -> Measured {
    let mut results = results.into_iter();
    let mut merged = results.next().expect("there is at least one part");
    for result in results {
        merged.seconds = merged.seconds.max(result.seconds);
        merged.broken = merged.broken.or(result.broken);
        for (session, other) in merged.sessions.iter_mut().zip(result.sessions) {
            session.tally.add(&other.tally);
            session.failure = session.failure.take().or(other.failure);
        }
    }
    merged
}

const READY: &str = "ready";
