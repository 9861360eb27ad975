//! How a client comes to its shared memory and its sessions.

use super::control::{Control, unexpected};
use super::error::Error;
use super::link::Link;
use super::session::Open;
use crate::control::{ModelInfo, Reply, Request as Question};
use crate::wire::VERSION;
use std::path::Path;
use std::time::Duration;

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
