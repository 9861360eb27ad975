//! Control messages: what a client and the daemon say to each other on the Unix stream socket.
//!
//! A frame is a `u32` little-endian length and as many bytes of JSON. The client asks, the daemon answers each request
//! with exactly one reply, in order. [`Reply::Welcome`] carries four file descriptors (`SCM_RIGHTS`), in this order: client region,
//! daemon region, arena, doorbell.

use crate::wire::DType;
use serde::{Deserialize, Serialize};

/// Longest frame that the daemon takes; a longer one ends the connection.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest frame that a client has to take.
pub const REPLY_BYTES_MAX: usize = 16 << 20;

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Asks for shared memory; at most once on a connection. The other requests need no hello.
    Hello {
        /// Protocol versions that the client speaks.
        versions: Vec<u32>,
        /// Name of the client program, for `rota status`.
        client: String,
        /// Requests in flight at most; a power of two, [`crate::wire::SLOTS_MIN`]..=[`crate::wire::SLOTS_MAX`].
        slots: u32,
        arena_bytes: u64,
    },
    /// Opens a session; only after `hello`.
    Open {
        model: String,
        #[serde(default)]
        version: Option<u64>,
        #[serde(default)]
        slo_ms: Option<f64>,
    },
    Close {
        session: u32,
    },
    Models {},
    Status {},
    /// The daemon's own user and root only.
    Load {
        model: String,
        #[serde(default)]
        version: Option<u64>,
    },
    /// The daemon's own user and root only.
    Unload {
        model: String,
        #[serde(default)]
        version: Option<u64>,
    },
    /// Stops admission and ends the daemon when all is answered. The daemon's own user and root only.
    Drain {},
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Welcome {
        version: u32,
        daemon: String,
        slots: u32,
        arena_bytes: u64,
    },
    /// `session` is what request blocks name; ids are the connection's own.
    Opened {
        session: u32,
        slo_ms: f64,
        model: ModelInfo,
    },
    Models {
        models: Vec<ModelInfo>,
    },
    Status {
        status: serde_json::Value,
    },
    Done {},
    Error {
        code: ErrorCode,
        message: String,
    },
    /// Not an answer: the daemon ends this connection, because of this.
    Poisoned {
        message: String,
    },
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    BadRequest,
    Version,
    Limit,
    Permission,
    UnknownModel,
    UnknownSession,
    Slo,
    Load,
    Draining,
    Internal,
}

/// A model that is served, as clients see it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ModelInfo {
    pub name: String,
    pub version: u64,
    pub inputs: Vec<TensorInfo>,
    pub outputs: Vec<TensorInfo>,
    /// Largest number of items in one batch; 1 for a model whose batch is fixed.
    pub max_batch: u32,
    /// SLO of sessions that name none.
    pub default_slo_ms: f64,
    /// Least time in which a batch of one executes.
    pub batch_of_one_ms: f64,
    /// What it shares with other models, when it is served together with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupInfo>,
}

/// The group in which a model is served: what its models have in common runs once for all of them.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct GroupInfo {
    /// The same for all models of the group.
    pub id: u32,
    /// The parts that this model shares, the one that most models share first.
    pub shared: Vec<SharedInfo>,
    /// Share of the group's time, for one item, that shared parts take: 0 to 1.
    pub shared_time: f64,
    /// Bytes of weights that only this model has.
    pub own_bytes: u64,
}

/// A part that several models share.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct SharedInfo {
    /// By name, with ":version" behind it unless that is 1.
    pub models: Vec<String>,
    pub nodes: u64,
    /// Bytes of weights that are held once for all.
    pub weight_bytes: u64,
    /// What it hands on to what each model has for itself.
    pub cut: Vec<String>,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: DType,
    /// Outermost first.
    pub dims: Vec<DimInfo>,
    /// The axis that requests are batched along; none: requests must agree on the whole tensor to share a batch.
    pub batch_axis: Option<usize>,
}

/// A number, or the model's name for a dimension that each request chooses (`""` when it names none).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(untagged)]
pub enum DimInfo {
    Fixed(u64),
    Named(String),
}
