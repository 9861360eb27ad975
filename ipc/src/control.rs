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
    /// Opens the stages of a query that the daemon knows; only after `hello`.
    Query {
        name: String,
    },
    /// Declares a query for this user's connections, and opens it; only after `hello`. It is forgotten when the last connection
    /// that declared it has ended.
    Declare {
        query: QueryDeclaration,
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
    Query {
        query: QueryInfo,
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
    /// No query of this name is known.
    UnknownQuery,
    /// What was declared is no query, or another one has its name.
    Query,
    Slo,
    Load,
    Draining,
    Internal,
}

/// A tree of calls under one SLO, as it is declared: in the daemon's settings, or by a client.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct QueryDeclaration {
    pub name: String,
    /// From when a run begins to its last answer.
    pub slo_ms: f64,
    /// Its share when there are too few devices; 1 is usual. Its stages divide it among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// In any order; exactly one is after no other.
    pub stage: Vec<StageDeclaration>,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct StageDeclaration {
    pub name: String,
    pub model: String,
    /// The newest when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The stage whose answers lead to calls of this one; `None`: the query begins here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Calls of it in one run at most. Default: 1 where the query begins, else 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_calls: Option<u32>,
}

impl StageDeclaration {
    /// The stage with which a query begins.
    pub fn first(name: &str, model: &str) -> StageDeclaration {
        StageDeclaration { name: name.into(), model: model.into(), ..StageDeclaration::default() }
    }

    /// A stage that is called with what stage `after` answered.
    pub fn after(after: &str, name: &str, model: &str) -> StageDeclaration {
        StageDeclaration { after: Some(after.into()), ..StageDeclaration::first(name, model) }
    }
}

/// A query that was opened.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct QueryInfo {
    /// What a begin names; the daemon's own number for the query.
    pub id: u32,
    pub name: String,
    pub slo_ms: f64,
    /// By the number that a request calls them by.
    pub stages: Vec<StageInfo>,
}

/// A stage of a query that was opened.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct StageInfo {
    pub name: String,
    /// The connection's session for it, which request blocks name.
    pub session: u32,
    #[serde(default)]
    pub after: Option<String>,
    pub max_calls: u32,
    /// Its share of the SLO at this moment; the daemon changes it as load changes.
    pub share_ms: f64,
    pub model: ModelInfo,
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
    /// The models, this one among them, whose own parts can run as one because they differ in their weights only.
    #[serde(default)]
    pub stacked: Vec<String>,
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
