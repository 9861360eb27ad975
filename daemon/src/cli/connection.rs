//! Where the daemon is, for the verbs that ask it.

use super::Failure;
use rota_ipc::client::{Control, default_socket_path};
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Connection {
    /// The daemon's socket [default: $ROTA_SOCKET, $XDG_RUNTIME_DIR/rota.sock or /run/rota/rota.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Connection {
    pub fn path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(default_socket_path)
    }

    pub fn control(&self) -> Result<Control, Failure> {
        Ok(Control::connect(self.path(), TIMEOUT)?)
    }
}

/// For answers that need no loading.
pub const TIMEOUT: Duration = Duration::from_secs(10);
