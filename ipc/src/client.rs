//! The client library: connect, open sessions, ask.
//!
//! ```no_run
//! use rota_ipc::{Client, client::Open};
//! # fn main() -> Result<(), rota_ipc::client::Error> {
//! let mut client = Client::connect_default()?;
//! let session = client.open("digits", Open::default())?;
//! let mut request = client.request(&session)?;
//! request.input::<f32>("image", &[1, 1, 28, 28])?.fill(0.5);
//! let answer = client.infer(request)?;
//! println!("{:?}", answer.output::<f32>(0)?.data);
//! # Ok(())
//! # }
//! ```
//!
//! Several models under one SLO: [`Query`].

mod arena;
mod connect;
mod control;
mod error;
mod link;
mod query;
mod request;
mod runs;
mod session;

pub use connect::ClientOptions;
pub use control::{Control, default_socket_path};
pub use error::Error;
pub use query::{OpenQuery, Query, Run, Stage};
pub use request::{Answer, Deadline, Element, Key, Rejected, Request, Ticket, Timing, View};
pub use runs::RunId;
pub use session::{Open, Session};

use crate::control::{ModelInfo, Reply, Request as Question, TensorInfo};
use crate::region::submission_entries;
use crate::wire::{Completion, OP_CANCEL, OP_INFER, Reason, SESSIONS_MAX, Status, Submission};
use connect::{hello, open_session};
use link::Link;
use runs::Runs;
use std::cell::Cell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection to the daemon on this host.
///
/// It belongs to one thread at a time; threads that ask at the same time connect each for themselves. Requests in flight are
/// found by their slot; submitting, taking an answer and cancelling are O(1), and none of them allocates or locks when
/// the request was used before. Only `wait`, `infer` and the control calls block; a submission waits at most a tenth of a second
/// for a daemon that does not take what was submitted before.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    options: ClientOptions,
    control: Control,
    link: Link,
    /// By [`Session::index`]; `None` once closed.
    sessions: Vec<Option<OpenSession>>,
    /// By request slot.
    in_flight: Vec<Option<InFlight>>,
    /// Slots that no request in flight holds.
    free_slots: Vec<u32>,
    /// Answers that were read from the ring and not yet taken; with those in flight at most as many as there are slots.
    ready: VecDeque<Answer>,
    /// By [`OpenQuery`]'s index.
    queries: Vec<OpenQuery>,
    runs: Runs,
    next_number: u64,
    /// When the peer was last seen alive.
    peer_checked: Instant,
    /// Why the connection is of no further use.
    ended: Option<String>,
    /// One thread at a time.
    not_sync: PhantomData<Cell<()>>,
}

#[derive(Debug)]
struct OpenSession {
    /// The daemon's number for it on this connection.
    id: u32,
    open: Open,
    /// Opened by itself; otherwise a query's stage, which is opened with the query.
    is_own: bool,
    model: Arc<ModelInfo>,
}

#[derive(Debug)]
struct InFlight {
    number: u64,
    cancelled: bool,
    request: Request,
}

impl Client {
    /// Connects to [`default_socket_path`] with default options.
    pub fn connect_default() -> Result<Client, Error> {
        Client::connect(default_socket_path(), ClientOptions::default())
    }

    /// Fails with [`Error::NoDaemon`] or [`Error::Permission`] when the socket can't be reached, and with
    /// [`Error::Refused`] when the daemon speaks another version or grants less than was asked for.
    pub fn connect(path: impl AsRef<Path>, options: ClientOptions) -> Result<Client, Error> {
        let path = path.as_ref().to_path_buf();
        let (control, link) = hello(&path, &options)?;
        let slots = link.slots();
        Ok(Client {
            path,
            options,
            control,
            link,
            sessions: Vec::new(),
            in_flight: (0..slots).map(|_| None).collect(),
            free_slots: (0..slots).rev().collect(),
            ready: VecDeque::with_capacity(slots as usize),
            queries: Vec::new(),
            runs: Runs::new(slots),
            next_number: 0,
            peer_checked: Instant::now(),
            ended: None,
            not_sync: PhantomData,
        })
    }

    /// Opens a session: a model under an SLO.
    pub fn open(&mut self, model: &str, open: Open) -> Result<Session, Error> {
        let (id, slo, model) = open_session(&mut self.control, model, open)?;
        let model = Arc::new(model);
        let index = self.sessions.len();
        self.sessions.push(Some(OpenSession { id, open, is_own: true, model: model.clone() }));
        Ok(Session { index, model, slo })
    }

    /// Closes a session; its requests in flight are still answered.
    pub fn close(&mut self, session: Session) -> Result<(), Error> {
        let id = self.session_id(&session)?;
        match self.control.ask(&Question::Close { session: id }, Some(self.control.timeout()))? {
            Reply::Done {} => {
                self.sessions[session.index] = None;
                Ok(())
            }
            other => Err(control::unexpected(&other)),
        }
    }

    /// The control connection, for questions that need no shared memory.
    pub fn control(&mut self) -> &mut Control {
        &mut self.control
    }

    /// A new request, without inputs yet.
    pub fn request(&self, session: &Session) -> Result<Request, Error> {
        self.request_of(std::slice::from_ref(session))
    }

    /// A request that asks several models about the same inputs, at most [`SESSIONS_MAX`]. What they have in common is computed
    /// once. It is answered when all have answered, by the shortest of their SLOs, and as the worst of them: a model that fails
    /// fails it.
    ///
    /// Fails with [`Error::OtherInputs`] when the models do not take the same inputs, in the same order.
    pub fn request_of(&self, sessions: &[Session]) -> Result<Request, Error> {
        if sessions.is_empty() || sessions.len() > SESSIONS_MAX {
            return Err(Error::SessionCount { count: sessions.len() });
        }
        for session in sessions {
            self.session_id(session)?;
            let (first, model) = (sessions[0].model(), session.model());
            let same = |(a, b): (&TensorInfo, &TensorInfo)| (a.dtype, a.batch_axis) == (b.dtype, b.batch_axis);
            if first.inputs.len() != model.inputs.len() || !first.inputs.iter().zip(&model.inputs).all(same) {
                return Err(Error::OtherInputs { model: model.name.clone(), first: first.name.clone() });
            }
        }
        Ok(Request::new(sessions.to_vec(), self.link.arena().clone()))
    }

    /// Hands a request to the daemon. Its buffers come back with the answer.
    ///
    /// Fails, and gives the request back, when it is not complete, when all slots are taken, or when the connection has ended.
    pub fn submit(&mut self, request: Request) -> Result<Ticket, Box<Rejected>> {
        let mut request = request;
        match self.place(&mut request) {
            Ok(ticket) => {
                let entry = InFlight { number: ticket.number, cancelled: false, request };
                self.in_flight[ticket.slot as usize] = Some(entry);
                self.link.publish();
                Ok(ticket)
            }
            Err(error) => Err(Box::new(Rejected { request, error })),
        }
    }

    /// Asks the daemon to drop a request. It is answered all the same, `cancelled` unless it was too late for that. False: it
    /// was answered, or cancelled, before.
    pub fn cancel(&mut self, ticket: Ticket) -> Result<bool, Error> {
        self.check_open()?;
        let place = ticket.slot as usize;
        let flies = self.in_flight.get(place).and_then(Option::as_ref);
        if flies.is_none_or(|entry| entry.number != ticket.number || entry.cancelled) {
            return Ok(false);
        }
        let submission = Submission { op: OP_CANCEL, slot: ticket.slot, tag: ticket.number, ..Submission::default() };
        self.push(&submission)?;
        if let Some(entry) = &mut self.in_flight[place] {
            entry.cancelled = true;
        }
        self.link.publish();
        Ok(true)
    }

    /// The next answer, if one is there. Never blocks.
    pub fn poll(&mut self) -> Result<Option<Answer>, Error> {
        self.read_completions()?;
        if self.ready.is_empty() {
            if self.peer_checked.elapsed() >= PEER_CHECK_EVERY {
                self.look_for_peer()?;
            }
            if self.ready.is_empty() {
                self.check_open()?;
            }
        }
        Ok(self.ready.pop_front())
    }

    /// The next answer; `None` when none came within `timeout`, or when nothing is in flight.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Answer>, Error> {
        self.wait_until(after(timeout), |client| match client.ready.pop_front() {
            None if client.in_flight_count() == 0 => Some(None),
            answer => answer.map(Some),
        })
        .map(Option::flatten)
    }

    /// This request's answer; `None` when it did not come within `timeout`, or was taken before. Other answers stay to be taken.
    pub fn wait_for(&mut self, ticket: Ticket, timeout: Duration) -> Result<Option<Answer>, Error> {
        self.wait_until(after(timeout), |client| {
            if let Some(place) = client.ready.iter().position(|answer| answer.ticket == ticket) {
                return Some(client.ready.remove(place));
            }
            let flies = client.in_flight.get(ticket.slot as usize).and_then(Option::as_ref);
            (flies.is_none_or(|entry| entry.number != ticket.number)).then_some(None)
        })
        .map(Option::flatten)
    }

    /// Submits and waits for the answer, however long it takes: the daemon answers every request or ends.
    pub fn infer(&mut self, request: Request) -> Result<Answer, Error> {
        let ticket = self.submit(request)?;
        self.wait_long(ticket)?.ok_or(Error::Foreign { what: "the request" })
    }

    /// This request's answer, however long it takes; `None` when it was taken before.
    fn wait_long(&mut self, ticket: Ticket) -> Result<Option<Answer>, Error> {
        loop {
            let answer = self.wait_for(ticket, Duration::from_secs(3600))?;
            let flies = self.in_flight.get(ticket.slot as usize).and_then(Option::as_ref);
            if answer.is_some() || flies.is_none_or(|entry| entry.number != ticket.number) {
                return Ok(answer);
            }
        }
    }

    /// Requests that were submitted and whose answer has not come.
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.len() - self.free_slots.len()
    }

    /// Prepares for sleep on the descriptor of [`as_fd`](std::os::fd::AsFd::as_fd), which turns readable when an answer comes or the daemon dies.
    /// False: do not sleep, [`Client::poll`] has something. The next `poll` or `wait` ends the preparation.
    pub fn arm(&mut self) -> Result<bool, Error> {
        self.look_for_peer()?;
        if !self.ready.is_empty() {
            return Ok(false);
        }
        self.check_open()?;
        self.link.arm().map_err(|poisoned| self.broken(poisoned))
    }

    /// Checks the request, writes its block and its descriptor.
    fn place(&mut self, request: &mut Request) -> Result<Ticket, Error> {
        self.check_open()?;
        if !Arc::ptr_eq(&request.arena, self.link.arena()) {
            return Err(Error::Foreign { what: "the request" });
        }
        let mut ids = [0; SESSIONS_MAX];
        for (id, session) in ids.iter_mut().zip(&request.sessions) {
            *id = self.session_id(session)?;
        }
        let full = self.ready.len() + self.in_flight_count() >= self.in_flight.len();
        let Some(slot) = self.free_slots.last().copied().filter(|_| !full) else {
            return Err(Error::SlotsFull { slots: self.link.slots() });
        };
        let items = request.items()?;
        request.default_outputs(items)?;
        let (query, stage) = self.called(request)?;
        let block_bytes = self.link.write_block(slot, request, &ids[..request.sessions.len()], items)?;
        let submission = Submission {
            op: OP_INFER,
            slot,
            block_bytes,
            tag: self.next_number,
            deadline_ns: link::deadline_ns(request.deadline),
            priority: request.priority,
            query,
            stage,
            ..Submission::default()
        };
        self.push(&submission)?;
        self.free_slots.pop();
        let ticket = Ticket { slot, number: self.next_number };
        self.next_number += 1;
        Ok(ticket)
    }

    /// Writes a submission, behind those that had no room before. A full ring is waited for: the daemon soon takes some.
    fn push(&mut self, submission: &Submission) -> Result<(), Error> {
        let mut until = None;
        loop {
            match self.push_unsent().and_then(|()| self.push_now(submission)) {
                Err(Error::RingFull { .. }) if *until.get_or_insert_with(|| after(RING_WAIT)) > Instant::now() => {
                    self.link.publish();
                    std::thread::sleep(RING_LOOK);
                    if self.peer_checked.elapsed() >= PEER_CHECK_EVERY {
                        self.look_for_peer()?;
                    }
                    self.check_open()?;
                }
                pushed => return pushed,
            }
        }
    }

    fn push_now(&mut self, submission: &Submission) -> Result<(), Error> {
        match self.link.push(submission) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::RingFull { entries: submission_entries(self.link.slots()) }),
            Err(poisoned) => Err(self.broken(poisoned)),
        }
    }

    fn wait_until<T>(
        &mut self,
        deadline: Instant,
        mut ready: impl FnMut(&mut Client) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let spin_until = deadline.min(after(self.options.spin));
        loop {
            for _ in 0..SPINS_PER_CLOCK {
                self.read_completions()?;
                if let Some(result) = ready(self) {
                    return Ok(Some(result));
                }
                std::hint::spin_loop();
            }
            self.check_open()?;
            if Instant::now() >= spin_until {
                break;
            }
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let woken = self.link.sleep(left.min(PEER_CHECK_EVERY)).map_err(|poisoned| self.broken(poisoned))?;
            if !woken || self.peer_checked.elapsed() >= PEER_CHECK_EVERY {
                self.look_for_peer()?;
            }
            self.read_completions()?;
            if let Some(result) = ready(self) {
                return Ok(Some(result));
            }
            self.check_open()?;
        }
    }

    /// Moves what the ring holds to `ready`.
    fn read_completions(&mut self) -> Result<(), Error> {
        self.link.disarm();
        self.send_unsent()?;
        let mut completions = [Completion::default(); COMPLETIONS_PER_READ];
        loop {
            let count = match self.link.pop(&mut completions) {
                Ok(count) => count,
                Err(poisoned) => return Err(self.broken(poisoned)),
            };
            for completion in &completions[..count] {
                self.take_in(completion)?;
            }
            if count < completions.len() {
                return Ok(());
            }
        }
    }

    fn take_in(&mut self, completion: &Completion) -> Result<(), Error> {
        let place = self.in_flight.get_mut(completion.slot as usize);
        let entry = place.and_then(|place| place.take_if(|entry| entry.number == completion.tag));
        let (Some(mut entry), Some(status), Some(reason)) =
            (entry, Status::from_code(completion.status), Reason::from_code(completion.reason))
        else {
            return Err(self.broken(format!("it completed what was not asked: {completion:?}")));
        };
        self.free_slots.push(completion.slot);
        self.runs.answered(entry.request.call, reason);
        if let Err(text) = self.link.read_record(completion, status, &mut entry.request) {
            return Err(self.broken(text));
        }
        self.ready.push_back(Answer {
            ticket: Ticket { slot: completion.slot, number: entry.number },
            tag: entry.request.tag,
            status,
            reason,
            timing: Timing {
                queued: Duration::from_nanos(completion.queued_ns),
                executing: Duration::from_nanos(completion.executing_ns),
                batch: completion.batch,
                device: completion.device,
            },
            request: entry.request,
        });
        Ok(())
    }

    /// Looks whether the daemon is alive. It may have answered before it died, so what the ring holds is read after that.
    fn look_for_peer(&mut self) -> Result<(), Error> {
        if self.ended.is_some() {
            return Ok(());
        }
        self.peer_checked = Instant::now();
        let alive = self.link.is_peer_alive();
        self.read_completions()?;
        if !alive {
            let why = self
                .control
                .last_words()
                .unwrap_or_else(|| format!("the daemon on {} ended, or ended this connection", self.path.display()));
            self.end(why);
        }
        Ok(())
    }

    fn check_open(&self) -> Result<(), Error> {
        self.ended.as_ref().map_or(Ok(()), |why| Err(Error::Disconnected { why: why.clone() }))
    }

    /// The daemon said what can't be: nothing that it says is of use any more.
    fn broken(&mut self, what: impl ToString) -> Error {
        let what = what.to_string();
        self.end(format!("the daemon broke the protocol: {what}"));
        Error::Protocol(what)
    }

    fn end(&mut self, why: String) {
        self.link.arena().retire();
        self.ended.get_or_insert(why);
    }

    fn session_id(&self, session: &Session) -> Result<u32, Error> {
        match self.sessions.get(session.index) {
            Some(Some(open)) if Arc::ptr_eq(&open.model, &session.model) => Ok(open.id),
            _ => Err(Error::Foreign { what: "the session" }),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The daemon may still write what is in flight, so a request that outlives us must not be given that memory.
        self.link.arena().retire();
    }
}

/// An instant that far away, or as far as the clock goes.
fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + Duration::from_secs(1 << 30))
}

/// How long a full submission ring is waited for, and how often it is looked at.
const RING_WAIT: Duration = Duration::from_millis(100);
const RING_LOOK: Duration = Duration::from_micros(20);
/// A dead daemon is noticed this late at most.
const PEER_CHECK_EVERY: Duration = Duration::from_millis(100);
/// Polls between two looks at the clock, which costs as much as several of them.
const SPINS_PER_CLOCK: u32 = 16;
const COMPLETIONS_PER_READ: usize = 8;

const fn assert_send<T: Send>() {}
const _: () = assert_send::<Client>();
const _: () = assert_send::<Request>();
const _: () = assert_send::<Answer>();
