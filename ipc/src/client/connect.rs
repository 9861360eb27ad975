//! How a client comes to its shared memory and its sessions.

use super::control::{Control, unexpected};
use super::error::Error;
use super::link::Link;
use super::session::Open;
use super::{Client, OpenSession};
use crate::control::{ModelInfo, Reply, Request as Question};
use crate::wire::VERSION;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a client asks for when it connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Requests in flight at most; a power of two, [`crate::wire::SLOTS_MIN`]..=[`crate::wire::SLOTS_MAX`].
    pub slots: u32,
    /// Shared memory for all tensors of requests that exist at one time.
    pub arena_bytes: u64,
    /// How long `wait` polls before it sleeps: waking a sleeper costs about this much.
    pub spin: Duration,
    /// Name of this program in `rota status`.
    pub name: String,
    /// How long the daemon may take to answer control calls that load nothing.
    pub timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        let program = std::env::current_exe().ok();
        let name = program.as_deref().and_then(Path::file_name).map_or("client".into(), |name| name.to_string_lossy());
        ClientOptions {
            slots: 64,
            arena_bytes: 64 << 20,
            spin: Duration::from_micros(20),
            name: name.into_owned(),
            timeout: Duration::from_secs(10),
        }
    }
}

impl Client {
    /// A new connection to the same daemon, or to its successor, with the same sessions and queries. Requests in flight and runs
    /// are lost; requests that are not in flight belong to the old arena and can't be submitted any more. Answers that were read
    /// before can still be taken. After an error the client is as it was.
    pub fn reconnect(&mut self) -> Result<(), Error> {
        let (mut control, link) = hello(&self.path, &self.options)?;
        let mut ids = Vec::with_capacity(self.sessions.len());
        for session in &self.sessions {
            let Some(OpenSession { open, model, is_own: true, .. }) = session else {
                ids.push(None);
                continue;
            };
            let (id, _, now) = open_session(&mut control, &model.name, *open)?;
            if (&now.inputs, &now.outputs) != (&model.inputs, &model.outputs) {
                return Err(Error::ModelChanged { model: model.name.clone() });
            }
            ids.push(Some(id));
        }
        self.reopen_queries(&mut control, &mut ids)?;
        for (session, id) in self.sessions.iter_mut().zip(ids) {
            if let (Some(session), Some(id)) = (session, id) {
                session.id = id;
            }
        }
        self.link.arena().retire();
        let slots = link.slots();
        (self.control, self.link) = (control, link);
        self.in_flight = (0..slots).map(|_| None).collect();
        self.free_slots = (0..slots).rev().collect();
        self.runs = self.runs.renewed(slots);
        (self.peer_checked, self.ended) = (Instant::now(), None);
        Ok(())
    }
}

/// Connects and asks for shared memory.
pub(super) fn hello(path: &Path, options: &ClientOptions) -> Result<(Control, Link), Error> {
    let mut control = Control::connect(path, options.timeout)?;
    let question = Question::Hello {
        versions: vec![VERSION],
        client: options.name.clone(),
        slots: options.slots,
        arena_bytes: options.arena_bytes,
    };
    let reply = control.ask(&question, Some(options.timeout))?;
    let Reply::Welcome { version, slots, arena_bytes, .. } = reply else { return Err(unexpected(&reply)) };
    if version != VERSION {
        return Err(Error::Protocol(format!("it chose version {version}, which was not offered")));
    }
    let Some(descriptors) = control.take_descriptors() else {
        return Err(Error::Protocol("its welcome came without the four descriptors".into()));
    };
    let link = Link::new(slots, arena_bytes, descriptors)?;
    Ok((control, link))
}

pub(super) fn open_session(
    control: &mut Control,
    model: &str,
    open: Open,
) -> Result<(u32, Duration, ModelInfo), Error> {
    let question = Question::Open {
        model: model.into(),
        version: open.version,
        slo_ms: open.slo.map(|slo| slo.as_secs_f64() * 1e3),
    };
    match control.ask(&question, Some(control.timeout()))? {
        Reply::Opened { session, slo_ms, model } => {
            let slo = Duration::try_from_secs_f64(slo_ms / 1e3)
                .map_err(|_| Error::Protocol(format!("it opened a session with an SLO of {slo_ms} ms")))?;
            Ok((session, slo, model))
        }
        other => Err(unexpected(&other)),
    }
}
