//! What happened, one JSON object a line: enough for somebody else to recount everything.

use crate::Nanos;
use crate::load::Request;
use std::io::{self, Write};

/// Writes `{"t_ms","kind","session","request"|"requests","device","batch"}` lines, or nothing. A failed write is kept
/// and told at the end: a simulation does not stop for it.
#[derive(Default)]
pub struct EventLog<'a> {
    out: Option<&'a mut dyn Write>,
    failed: Option<&'a mut Option<io::Error>>,
}

impl<'a> EventLog<'a> {
    pub fn none() -> EventLog<'a> {
        EventLog::default()
    }

    /// Lines go to `out`; the first error to `failed`.
    pub fn to(out: &'a mut dyn Write, failed: &'a mut Option<io::Error>) -> EventLog<'a> {
        EventLog { out: Some(out), failed: Some(failed) }
    }

    pub(crate) fn arrival(&mut self, request: &Request) {
        self.request("arrival", request, request.arrival);
    }

    pub(crate) fn dropped(&mut self, request: &Request, now: Nanos) {
        self.request("drop", request, now);
    }

    /// A call of a query that was given up.
    pub(crate) fn cancelled(&mut self, request: &Request, now: Nanos) {
        self.request("cancel", request, now);
    }

    /// `kind` is "start", "end" or "preempt".
    pub(crate) fn batch(&mut self, kind: &str, now: Nanos, device: usize, session: usize, requests: &[u32]) {
        let batch = requests.len();
        self.line(|out| {
            write!(out, "{{\"t_ms\":{},\"kind\":\"{kind}\",\"session\":{session},\"requests\":[", Milliseconds(now))?;
            for (index, request) in requests.iter().enumerate() {
                write!(out, "{}{request}", if index > 0 { "," } else { "" })?;
            }
            writeln!(out, "],\"device\":{device},\"batch\":{batch}}}")
        });
    }

    fn request(&mut self, kind: &str, request: &Request, now: Nanos) {
        let Request { id, session, .. } = request;
        self.line(|out| {
            let t_ms = Milliseconds(now);
            writeln!(out, "{{\"t_ms\":{t_ms},\"kind\":\"{kind}\",\"session\":{session},\"request\":{id}}}")
        });
    }

    fn line(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        let Some(out) = &mut self.out else { return };
        if let Err(error) = write(*out) {
            self.out = None;
            if let Some(failed) = self.failed.take() {
                *failed = Some(error);
            }
        }
    }
}

/// Nanoseconds, shown as milliseconds without loss.
struct Milliseconds(Nanos);

impl std::fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
