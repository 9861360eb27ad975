//! What the poller is told and what it tells: the cold path, between threads.

use crate::background::{Networks, Ready};
use crate::model::Model;
use crate::planning::{Asked, Cause, Promise, QuerySplit};
use crate::query::{Bound, QueryId};
use crate::stats::{QueryStats, SessionStats};
use rota_device::Arena;
use rota_ipc::server::Connection;
use rota_sched::{ModelId, SessionRates};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// A client's connection, numbered by the control thread; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

pub enum Command {
    Connect {
        id: ConnectionId,
        connection: Box<Connection>,
        uid: u32,
        name: String,
    },
    /// The control socket closed.
    Disconnect {
        id: ConnectionId,
    },
    /// Answered with [`Notice::Opened`].
    Open {
        id: ConnectionId,
        model: ModelId,
        slo: Duration,
    },
    Close {
        id: ConnectionId,
        session: u32,
    },
    AddQuery {
        query: Arc<Bound>,
    },
    /// Answered with [`Notice::QueryOpened`].
    OpenQuery {
        id: ConnectionId,
        query: QueryId,
    },
    /// Nobody declares it any more. Answered with [`Notice::QueryRemoved`], if it is served.
    RemoveQuery {
        query: QueryId,
    },
    /// By device index, one for each device that serves it.
    Add {
        model: Arc<Model>,
        networks: Networks,
    },
    /// Answered with [`Notice::Removed`] when nothing of it runs any more.
    Remove {
        model: ModelId,
    },
    /// Which models are served together from now on. Groups that are not kept or added end, each with a
    /// [`Notice::Ungrouped`]; models that are in none any more bring their networks.
    Regroup {
        keep: Vec<ModelId>,
        add: Vec<Ready>,
        whole: Vec<Ready>,
    },
    /// Answered with [`Notice::Demand`], unless the daemon drains.
    Plan {
        cause: Cause,
    },
    /// What the plan made of a [`Notice::Demand`] gives the sessions; nothing if none could be made.
    Promise {
        promises: Vec<Promise>,
        splits: Vec<QuerySplit>,
    },
    /// Answered with a [`Notice::Session`] for each session, a [`Notice::Query`] for each query, and one [`Notice::Report`].
    Report,
    /// Stop admission, finish what runs, answer the rest; ends with [`Notice::Drained`].
    Drain,
}

pub enum Notice {
    /// The connection's own number for the session.
    Opened {
        id: ConnectionId,
        session: Result<u32, OpenError>,
    },
    /// By stage: the connection's own number for its session, and its share of the SLO.
    QueryOpened {
        id: ConnectionId,
        stages: Result<Vec<(u32, Duration)>, OpenError>,
    },
    /// The query is no longer served; its number is free.
    QueryRemoved {
        query: QueryId,
    },
    Removed {
        model: ModelId,
    },
    /// Nothing of the group runs any more; its number is free.
    Ungrouped {
        group: ModelId,
    },
    /// The client broke the protocol or hung up; it is gone from the poller.
    Gone {
        id: ConnectionId,
        poisoned: Option<String>,
    },
    /// Nothing of a client that is gone is with the poller any more: its memory, which batches of devices may still have.
    Left {
        arena: Arena,
    },
    /// A plan is to be made for this; answered with [`Command::Promise`].
    Demand(Asked),
    Session(Box<SessionSnapshot>),
    Query(Box<QuerySnapshot>),
    Report(PollerReport),
    Drained,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OpenError {
    #[error("this connection has {0} sessions open, which is the most; close one")]
    ConnectionFull(usize),
    #[error("the daemon has {0} sessions in use, which is the most; raise `sessions_max`")]
    DaemonFull(u32),
    #[error("the model is being unloaded")]
    Unloading,
    #[error(
        "the query is not in service: a model of it is being unloaded, or its sessions have no room (sessions_max)"
    )]
    NoQuery,
    #[error("the daemon is stopping")]
    Draining,
}

/// A session's state at one moment.
#[derive(Debug)]
pub struct SessionSnapshot {
    pub model: Arc<Model>,
    pub slo: Duration,
    pub weight: f64,
    /// The query's stage that it is, as "query/stage".
    pub stage: Option<String>,
    pub clients: u32,
    pub rates: SessionRates,
    /// Items per second that the plan gives it; `None` while it was never planned for.
    pub promised_rate: Option<f64>,
    /// Items per second answered in time, lately.
    pub goodput: f64,
    pub stats: SessionStats,
}

/// A query's state at one moment. Lists are by stage.
#[derive(Debug)]
pub struct QuerySnapshot {
    pub bound: Arc<Bound>,
    pub shares: Vec<Duration>,
    pub gammas: Vec<f64>,
    /// Items per second.
    pub calls: Vec<f64>,
    /// Runs per second answered in time, lately.
    pub goodput: f64,
    pub stats: QueryStats,
}

/// The rest of the poller's state at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct PollerReport {
    pub requests_in_flight: u32,
    pub clients: Vec<ClientReport>,
    pub devices: Vec<DeviceReport>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ClientReport {
    pub name: String,
    pub uid: u32,
    pub in_flight: u32,
    pub sessions: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct DeviceReport {
    pub description: String,
    pub batches: u64,
    pub busy_ms: f64,
    /// It does not answer; its share of the work is the others'.
    pub lost: bool,
}
