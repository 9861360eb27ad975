//! The daemon's socket: made once per path, by one daemon at a time, and gone when it ends.

use rustix::fs::{FlockOperation, Mode, flock};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Why the socket can't be had, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("a daemon already serves {0}; stop it, or choose another --socket")]
    Taken(PathBuf),
    #[error("{path}: {error}; choose a --socket where this user may write")]
    Io { path: PathBuf, error: io::Error },
    #[error("{path}: a socket's path has at most 107 bytes; choose a shorter --socket")]
    TooLong { path: PathBuf },
}

/// The socket, and the lock beside it that says that its daemon lives: a socket file alone outlives a daemon that was killed.
pub struct Bound {
    pub listener: UnixListener,
    lock: File,
    lock_path: PathBuf,
}

const PATH_BYTES_MAX: usize = 107;

/// Binds `path` with permissions `mode`, taking over what a dead daemon left.
pub fn bind(path: &Path, mode: u32) -> Result<Bound, SocketError> {
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(SocketError::TooLong { path: path.to_path_buf() });
    }
    let io_error = |error| SocketError::Io { path: path.to_path_buf(), error };
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(io_error)?;
    }
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = loop {
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(io_error)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SocketError::Taken(path.to_path_buf())),
            Err(error) => return Err(io_error(error.into())),
        }
        // A daemon that was just ending may have removed the file that we opened: then it locks nobody out.
        let ours = lock.metadata().map_err(io_error)?;
        if fs::metadata(&lock_path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            break lock;
        }
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
        _ => {}
    }
    // Nobody may connect between bind and chmod.
    let umask = rustix::process::umask(Mode::from_raw_mode(0o777 & !mode));
    let listener = UnixListener::bind(path);
    rustix::process::umask(umask);
    Ok(Bound { listener: listener.map_err(io_error)?, lock, lock_path })
}

/// Removes the socket, so that nobody finds a daemon that takes nothing more.
pub fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

impl Bound {
    /// The listener, and what keeps the path ours until dropped.
    pub fn split(self) -> (UnixListener, Lock) {
        (self.listener, Lock { _file: self.lock, path: self.lock_path })
    }
}

/// Held for as long as the daemon lives. The file goes before the lock does.
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_a_dead_ones_socket_is_taken_over() {
        let folder = std::env::temp_dir().join(format!("rota-socket-{}", std::process::id()));
        let path = folder.join("rota.sock");
        let (listener, lock) = bind(&path, 0o600).unwrap().split();
        assert!(matches!(bind(&path, 0o600), Err(SocketError::Taken(_))));
        drop((listener, lock)); // as if killed: the socket's file stays
        assert!(path.exists());
        let again = bind(&path, 0o600).unwrap();
        drop(again);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        assert!(matches!(bind(&path, 0o600), Err(SocketError::TooLong { .. })));
    }
}
