//! The poller's clients: their rings, sessions and requests in flight, and what their users hold.

use super::messages::ConnectionId;
use super::runs::{Place, RunIndex};
use crate::query::QueryId;
use rota_ipc::server::Connection;
use rota_ipc::wire::run_slot;
use rota_sched::{Instant, RequestId, SessionId};
use slab::Slab;
use std::collections::HashMap;

/// Sessions that one connection can have open.
pub const SESSIONS_PER_CLIENT: usize = 4096;

/// One connected client.
pub struct Client {
    pub id: ConnectionId,
    pub connection: Connection,
    pub name: String,
    pub uid: u32,
    /// Index in [`Clients::users`].
    pub user: usize,
    /// By the connection's own session numbers.
    pub sessions: Vec<Handle>,
    /// By request slot.
    pub slots: Vec<Option<RequestId>>,
    pub in_flight: u32,
    /// Queries that it has opened: those that it may begin runs of.
    pub queries: Vec<QueryId>,
    /// By run slot: as many as request slots.
    pub runs: Vec<Place>,
    /// Completions were written that are not yet published.
    pub dirty: bool,
    /// Its ring is polled; otherwise it was asked to ring the doorbell.
    pub polled: bool,
    /// It was asked to ring and has not rung since.
    pub armed: bool,
    pub last_heard: Instant,
    /// Hung up or poisoned: nothing is read from or written to it; it leaves when its last request has ended.
    pub dying: bool,
}

/// What a connection's session number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handle {
    Closed,
    Open(SessionId),
    /// Its model was unloaded.
    Unloaded,
}

/// All clients by slab key, and the requests in flight of each user.
#[derive(Default)]
pub struct Clients {
    pub entries: Slab<Client>,
    /// Keys of the clients whose rings are polled.
    pub polled: Vec<usize>,
    keys: HashMap<ConnectionId, usize>,
    users: Vec<User>,
    user_of: HashMap<u32, usize>,
}

#[derive(Debug, Default)]
struct User {
    in_flight: u32,
    runs: u32,
}

impl Clients {
    /// Users are never forgotten: one entry for each uid that ever connected.
    pub fn insert(&mut self, id: ConnectionId, connection: Connection, uid: u32, name: String, now: Instant) -> usize {
        let users = &mut self.users;
        let user = *self.user_of.entry(uid).or_insert_with(|| {
            users.push(User::default());
            users.len() - 1
        });
        let slots = vec![None; connection.slots() as usize];
        let runs = vec![Place::Free; connection.slots() as usize];
        let key = self.entries.insert(Client {
            id,
            connection,
            name,
            uid,
            user,
            sessions: Vec::new(),
            slots,
            in_flight: 0,
            queries: Vec::new(),
            runs,
            dirty: false,
            polled: false,
            armed: false,
            last_heard: now,
            dying: false,
        });
        self.keys.insert(id, key);
        key
    }

    pub fn key(&self, id: ConnectionId) -> Option<usize> {
        self.keys.get(&id).copied()
    }

    /// The connection is over; its entry stays until [`Clients::remove`].
    pub fn forget(&mut self, id: ConnectionId) {
        self.keys.remove(&id);
    }

    pub fn remove(&mut self, key: usize) {
        let client = self.entries.remove(key);
        debug_assert_eq!(client.in_flight, 0);
    }

    /// Starts polling the client's ring.
    pub fn poll(&mut self, key: usize, now: Instant) {
        let client = &mut self.entries[key];
        if client.dying {
            return;
        }
        client.last_heard = now;
        client.armed = false;
        client.connection.disarm();
        if !std::mem::replace(&mut client.polled, true) {
            self.polled.push(key);
        }
    }

    /// Counts a request of the client; false when its user holds `limit` already.
    pub fn admit(&mut self, key: usize, slot: u32, request: RequestId, limit: u32) -> bool {
        let client = &mut self.entries[key];
        let user = &mut self.users[client.user];
        if user.in_flight >= limit {
            return false;
        }
        user.in_flight += 1;
        client.in_flight += 1;
        client.slots[slot as usize] = Some(request);
        true
    }

    /// Counts a run of the client; false when its user holds `limit` already.
    pub fn admit_run(&mut self, key: usize, limit: u32) -> bool {
        let user = &mut self.users[self.entries[key].user];
        let room = user.runs < limit;
        user.runs += u32::from(room);
        room
    }

    /// Takes a run of the client off the books.
    pub fn release_run(&mut self, key: usize) {
        self.users[self.entries[key].user].runs -= 1;
    }

    /// The run that the client's number `id` stands for, if its slot holds any; and the slot. `None` for a slot that there is not.
    pub fn place(&mut self, key: usize, id: u64) -> Option<&mut Place> {
        self.entries[key].runs.get_mut(run_slot(id) as usize)
    }

    /// Whether a run that has ended in between still has its client's slot.
    pub fn holds(&self, key: usize, id: u64, run: RunIndex) -> bool {
        self.entries[key].runs.get(run_slot(id) as usize) == Some(&Place::Open(run))
    }

    /// Takes a request of the client off the books.
    pub fn release(&mut self, key: usize, slot: u32) {
        let client = &mut self.entries[key];
        self.users[client.user].in_flight -= 1;
        client.in_flight -= 1;
        client.slots[slot as usize] = None;
    }
}
