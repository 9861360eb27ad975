//! The control socket, from the client's side: one question, one answer.

use super::error::Error;
use crate::control::{ModelInfo, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Reply, Request};
use crate::frame::{self, DESCRIPTORS_MAX, FrameError, FrameReader};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the daemon listens unless it is told otherwise: `$ROTA_SOCKET`, else `$XDG_RUNTIME_DIR/rota.sock`, else
/// `/run/rota/rota.sock`.
pub fn default_socket_path() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("ROTA_SOCKET")
        .or_else(|| set("XDG_RUNTIME_DIR").map(|folder| folder.join("rota.sock")))
        .unwrap_or_else(|| "/run/rota/rota.sock".into())
}

/// A control connection without shared memory: all that an administrator's tool needs. Calls block until the daemon answers.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    stream: UnixStream,
    reader: FrameReader,
    /// Descriptors that came with replies and were not taken yet.
    descriptors: Vec<OwnedFd>,
    /// How long the daemon may take for an answer that needs no loading.
    timeout: Duration,
}

impl Control {
    /// Fails with [`Error::NoDaemon`] or [`Error::Permission`] when the socket can't be reached.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Control, Error> {
        let path = path.as_ref().to_path_buf();
        let stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::NoDaemon { path: path.clone() },
            ErrorKind::PermissionDenied => Error::Permission { path: path.clone() },
            _ => Error::Io(error),
        })?;
        Ok(Control { path, stream, reader: FrameReader::new(REPLY_BYTES_MAX), descriptors: Vec::new(), timeout })
    }

    /// All models that are served.
    pub fn models(&mut self) -> Result<Vec<ModelInfo>, Error> {
        match self.ask(&Request::Models {}, Some(self.timeout))? {
            Reply::Models { models } => Ok(models),
            other => Err(unexpected(&other)),
        }
    }

    /// The daemon's own report.
    pub fn status(&mut self) -> Result<serde_json::Value, Error> {
        match self.ask(&Request::Status {}, Some(self.timeout))? {
            Reply::Status { status } => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// Loads a model (the newest version when `None`) and returns when it is served. The daemon's own user and root only.
    pub fn load(&mut self, model: &str, version: Option<u64>) -> Result<(), Error> {
        self.ask_done(&Request::Load { model: model.into(), version })
    }

    /// Unloads a model (all versions when `None`). The daemon's own user and root only.
    pub fn unload(&mut self, model: &str, version: Option<u64>) -> Result<(), Error> {
        self.ask_done(&Request::Unload { model: model.into(), version })
    }

    /// Stops admission; the daemon ends when all is answered. The daemon's own user and root only.
    pub fn drain(&mut self) -> Result<(), Error> {
        self.ask_done(&Request::Drain {})
    }

    fn ask_done(&mut self, request: &Request) -> Result<(), Error> {
        match self.ask(request, None)? {
            Reply::Done {} => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks and waits for the answer, without end when `timeout` is `None`. After an error other than
    /// [`Error::Refused`] the stream is shut, because question and answer may be out of step.
    pub(super) fn ask(&mut self, request: &Request, timeout: Option<Duration>) -> Result<Reply, Error> {
        let answer = self.send(request).and_then(|()| self.receive(timeout));
        match answer {
            Ok(Reply::Error { code, message }) => Err(Error::Refused { code, message }),
            Ok(Reply::Poisoned { message }) => Err(Error::Disconnected { why: message }),
            Ok(reply) => Ok(reply),
            Err(error) => {
                // It fails only when the stream is shut already.
                let _ = self.stream.shutdown(std::net::Shutdown::Both);
                Err(error)
            }
        }
    }

    /// The descriptors that came with the last reply.
    pub(super) fn take_descriptors(&mut self) -> Option<[OwnedFd; DESCRIPTORS_MAX]> {
        std::mem::take(&mut self.descriptors).try_into().ok()
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What the daemon said when it ended the connection, if it said anything.
    pub(super) fn last_words(&mut self) -> Option<String> {
        match self.receive(Some(LAST_WORDS_WAIT)) {
            Ok(Reply::Poisoned { message } | Reply::Error { message, .. }) => Some(message),
            _ => None,
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), Error> {
        let frame = frame::encode(request, REQUEST_BYTES_MAX).map_err(|error| frame_error(error, &self.path))?;
        let mut sent = 0;
        while sent < frame.len() {
            sent += frame::send_with_fds(self.stream.as_fd(), &frame[sent..], &[])
                .map_err(|error| frame_error(error.into(), &self.path))?;
        }
        Ok(())
    }

    fn receive(&mut self, timeout: Option<Duration>) -> Result<Reply, Error> {
        self.stream.set_read_timeout(timeout.map(|timeout| timeout.max(Duration::from_micros(1))))?;
        let mut bytes = [0; 8 << 10];
        loop {
            if let Some(reply) = self.reader.next().map_err(|error| frame_error(error, &self.path))? {
                return Ok(reply);
            }
            match frame::recv_with_fds(self.stream.as_fd(), &mut bytes, &mut self.descriptors) {
                Ok(0) => return Err(hung_up(&self.path)),
                Ok(count) => self.reader.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(Error::NoAnswer { path: self.path.clone(), timeout: timeout.unwrap_or_default() });
                }
                Err(error) => return Err(frame_error(error.into(), &self.path)),
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The daemon answered something else than what was asked.
pub(super) fn unexpected(reply: &Reply) -> Error {
    Error::Protocol(format!("it did not answer what was asked, but {reply:?}"))
}

fn hung_up(path: &Path) -> Error {
    Error::Disconnected { why: format!("the daemon on {} closed the connection", path.display()) }
}

fn frame_error(error: FrameError, path: &Path) -> Error {
    match error {
        FrameError::Io(error) => match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected => hung_up(path),
            _ => Error::Io(error),
        },
        other => Error::Protocol(other.to_string()),
    }
}

/// How long a client waits for the reason of its disconnection: a daemon that has one sends it at once, and one that died
/// has closed the stream.
const LAST_WORDS_WAIT: Duration = Duration::from_millis(200);
