//! One client's control socket.

use crate::poller::messages::ConnectionId;
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use rota_ipc::control::{ErrorCode, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Reply};
use rota_ipc::frame::{Filled, FrameError, FrameReader, FrameWriter, peer_credentials};
use rota_sched::ModelId;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Replies that a client may leave unread before it is disconnected.
const UNREAD_BYTES_MAX: usize = 2 * REPLY_BYTES_MAX;
/// Reads from one socket before the next one's turn: frames wait in the kernel's buffer, not in ours.
const READS_MAX: usize = 16;
/// What a client may send while it waits for a reply.
const UNHANDLED_BYTES_MAX: usize = 2 * REQUEST_BYTES_MAX;

pub struct Connection {
    pub id: ConnectionId,
    pub uid: u32,
    pub name: String,
    /// It said hello and the poller has its rings.
    pub has_memory: bool,
    pub arena_bytes: u64,
    /// Queries that it has declared, by their place in the control thread's table.
    pub declared: Vec<usize>,
    pub reader: FrameReader,
    /// The request that is under way in another thread.
    pub waiting: Option<Waiting>,
    /// To be closed once the last reply is sent.
    pub closing: bool,
    stream: UnixStream,
    writer: FrameWriter,
}

/// What a connection waits for.
#[derive(Debug)]
pub enum Waiting {
    /// The poller's number for a session of `model`.
    Open {
        model: Arc<crate::model::Model>,
        slo: Duration,
    },
    /// A model that is being loaded, to open a session of.
    OpenAfterLoad {
        model: String,
        version: Option<u64>,
        slo_ms: Option<f64>,
    },
    /// The poller's sessions for a query's stages.
    Query {
        bound: Arc<crate::query::Bound>,
    },
    /// Models that are being loaded, to open a query of.
    QueryAfterLoad {
        name: String,
    },
    Load {
        name: String,
        version: u64,
    },
    Unload {
        models: Vec<ModelId>,
    },
    Status,
    Drain,
}

impl Connection {
    pub fn new(stream: UnixStream, id: ConnectionId) -> io::Result<Connection> {
        let credentials = peer_credentials(&stream)?;
        Ok(Connection {
            id,
            uid: credentials.uid,
            name: format!("pid {}", credentials.pid),
            has_memory: false,
            arena_bytes: 0,
            declared: Vec::new(),
            reader: FrameReader::new(REQUEST_BYTES_MAX),
            waiting: None,
            closing: false,
            stream,
            writer: FrameWriter::default(),
        })
    }

    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.stream, token, Interest::READABLE | Interest::WRITABLE)
    }

    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut self.stream)
    }

    /// Reads what there is. False: the client hung up, or says more at once than any client would.
    pub fn fill(&mut self) -> bool {
        for _ in 0..READS_MAX {
            match self.reader.fill(&mut self.stream) {
                Ok(Filled::Some) if self.reader.waiting_bytes() > UNHANDLED_BYTES_MAX => return false,
                Ok(Filled::Some) => {}
                Ok(Filled::Blocked) => return true,
                Ok(Filled::End) | Err(_) => return false,
            }
        }
        // READS_MAX reads are more than the longest request: this client pipelines without reading replies.
        false
    }

    /// Queues a reply; sent by [`Connection::flush`].
    pub fn reply(&mut self, reply: &Reply) {
        let queued = match self.writer.push(reply, REPLY_BYTES_MAX) {
            Err(FrameError::TooLong { bytes, .. }) => {
                let message = format!("the reply would have {bytes} bytes, more than a frame can hold");
                self.writer.push(&Reply::Error { code: ErrorCode::Internal, message }, REPLY_BYTES_MAX)
            }
            queued => queued,
        };
        if queued.is_err() || self.writer.waiting_bytes() > UNREAD_BYTES_MAX {
            self.closing = true;
        }
    }

    pub fn welcome(&mut self, reply: &Reply, descriptors: [std::os::fd::OwnedFd; 4]) {
        if self.writer.push_with_fds(reply, REPLY_BYTES_MAX, descriptors).is_err() {
            self.closing = true;
        }
    }

    /// Sends what is queued; true when nothing is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.writer.flush(&self.stream)
    }
}
