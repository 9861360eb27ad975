//! Sessions, as their user holds them.

use crate::control::ModelInfo;
use std::sync::Arc;
use std::time::Duration;

/// A model under an SLO, opened by [`super::Client::open`]. It stays valid when the client reconnects.
#[derive(Clone, Debug)]
pub struct Session {
    /// Place in the client's table; the daemon's id is found there, and changes with a reconnect.
    pub(super) index: usize,
    pub(super) model: Arc<ModelInfo>,
    pub(super) slo: Duration,
}

impl Session {
    pub fn model(&self) -> &ModelInfo {
        &self.model
    }

    /// How long an answer may take, unless a request says otherwise.
    pub fn slo(&self) -> Duration {
        self.slo
    }
}

/// How to open a session.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Open {
    /// The newest when `None`.
    pub version: Option<u64>,
    /// The model's own when `None`.
    pub slo: Option<Duration>,
}
