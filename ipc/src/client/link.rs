//! The client's side of a connection's shared memory: rings, blocks, records, and how to sleep on them.

use super::Client;
use super::arena::Arena;
use super::error::Error;
use super::request::{Deadline, Request, Written};
use crate::doorbell::{Doorbell, Peer};
use crate::region::{Regions, State};
use crate::ring::{ASLEEP, ASLEEP_ON_DOORBELL, AWAKE, Consumer, Descriptor, Poisoned, Producer};
use crate::wire::{
    BlockHeader, Completion, OUTPUTS_MAX, OutputRecord, RECORD_BYTES, Status, Submission, TENSORS_MAX, TensorRecord,
};
use rustix::thread::futex;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

#[derive(Debug)]
pub(super) struct Link {
    regions: Regions,
    submissions: Producer,
    completions: Consumer,
    doorbell: Doorbell,
    arena: Arc<Arena>,
    /// Our `need_wake` says that we sleep.
    armed: bool,
}

impl Link {
    /// From a welcome's four descriptors.
    pub(super) fn new(slots: u32, arena_bytes: u64, descriptors: [OwnedFd; 4]) -> io::Result<Link> {
        let [client, daemon, arena, doorbell] = descriptors;
        let regions = Regions::open(slots, arena_bytes, &[client, daemon, arena])?;
        let arena = Arena::new(regions.arena().clone());
        Ok(Link {
            regions,
            submissions: Producer::default(),
            completions: Consumer::default(),
            doorbell: doorbell.into(),
            arena,
            armed: false,
        })
    }

    pub(super) fn slots(&self) -> u32 {
        self.regions.slots()
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    pub(super) fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    /// Writes a request's block; returns the bytes in use.
    pub(super) fn write_block(&self, slot: u32, request: &Request, sessions: &[u32], items: u32) -> Result<u32, Error> {
        let inputs = request.inputs.iter().flatten().count();
        let outputs = request.outputs.iter().flatten().count();
        if inputs + outputs > TENSORS_MAX || outputs > OUTPUTS_MAX {
            return Err(Error::TooManyTensors { tensors: inputs + outputs, tensors_max: TENSORS_MAX });
        }
        let mut header = BlockHeader {
            inputs: inputs as u8,
            outputs: outputs as u8,
            sessions: sessions.len() as u8,
            items,
            ..BlockHeader::default()
        };
        header.session[..sessions.len()].copy_from_slice(sessions);
        let block = self.regions.block(slot);
        store(block, 0, zerocopy::transmute!(header));
        let model = request.session().model();
        let given = request.inputs.iter().enumerate().filter_map(|(index, input)| Some((index, input.as_ref()?)));
        let given = given.map(|(index, input)| TensorRecord {
            offset: input.span.offset() as u64,
            bytes: input.bytes as u64,
            dtype: model.inputs[index].dtype as u8,
            rank: input.rank,
            tensor: index as u8,
            dims: input.dims,
            ..TensorRecord::default()
        });
        let models = request.sessions.iter().enumerate();
        let all = models.flat_map(|(session, opened)| {
            let infos = opened.model.outputs.iter().enumerate();
            infos.map(move |(tensor, info)| (session, tensor, info.dtype))
        });
        let all = all.zip(&request.outputs);
        let asked = all.filter_map(|(which, output)| Some((which, output.as_ref()?)));
        let asked = asked.map(|((session, tensor, dtype), output)| TensorRecord {
            offset: output.span.offset() as u64,
            bytes: output.span.capacity() as u64,
            dtype: dtype as u8,
            tensor: tensor as u8,
            session: session as u8,
            ..TensorRecord::default()
        });
        for (place, record) in given.chain(asked).enumerate() {
            store(block, place + 1, zerocopy::transmute!(record));
        }
        Ok(((1 + inputs + outputs) * size_of::<TensorRecord>()) as u32)
    }

    /// Writes a submission, not visible before [`Link::publish`]. False: the ring is full.
    pub(super) fn push(&mut self, submission: &Submission) -> Result<bool, Poisoned> {
        let descriptor: Descriptor = zerocopy::transmute!(*submission);
        self.submissions.push(&self.regions.submissions(), &descriptor)
    }

    /// Shows the daemon what was pushed, and rings if it sleeps.
    pub(super) fn publish(&mut self) {
        if self.submissions.publish(&self.regions.submissions()) != AWAKE {
            self.doorbell.ring();
        }
    }

    pub(super) fn pop(&mut self, out: &mut [Completion]) -> Result<usize, Poisoned> {
        let out = <[Descriptor]>::mut_from_bytes(out.as_mut_bytes()).expect("a completion is laid out as a descriptor");
        self.completions.pop(&self.regions.completions(), out)
    }

    /// Fills in the request what the daemon wrote about its outputs, or why there are none. The error says what is wrong with it.
    pub(super) fn read_record(
        &self,
        completion: &Completion,
        status: Status,
        request: &mut Request,
    ) -> Result<(), String> {
        request.message.clear();
        for output in request.outputs.iter_mut().flatten() {
            output.written = None;
        }
        let words = self.regions.record(completion.slot);
        let used = completion.record_bytes as usize;
        if used > RECORD_BYTES {
            return Err("a result record is too long".into());
        }
        if !matches!(status, Status::Ok | Status::Late) {
            let mut bytes = [0; RECORD_BYTES];
            copy_words(words, &mut bytes[..used]);
            let text = std::str::from_utf8(&bytes[..used]).map_err(|_| "a result record is no text")?;
            request.message.push_str(text);
            return Ok(());
        }
        if !used.is_multiple_of(size_of::<OutputRecord>()) {
            return Err("a result record is cut".into());
        }
        // One by one, so that an answer with one output touches 48 bytes and no more.
        for words in words[..used / 8].chunks(size_of::<OutputRecord>() / 8) {
            let mut record = OutputRecord::default();
            copy_words(words, record.as_mut_bytes());
            let (session, index) = (usize::from(record.session), usize::from(record.tensor));
            let asked = request.sessions.get(session).and_then(|session| session.model.outputs.get(index));
            let dtype = asked.map(|info| info.dtype);
            let place = dtype.map(|_| request.first_output(session) + index);
            let output = place.and_then(|place| request.outputs.get_mut(place)).and_then(Option::as_mut);
            let (Some(output), Some(dtype)) = (output, dtype) else {
                return Err(format!("output {index} of session {session} was written, but not asked for"));
            };
            let dims = record.dims.get(..usize::from(record.rank)).ok_or("an output has too many dimensions")?;
            if record.dtype != dtype as u8 {
                return Err(format!("output {index} has element type {}, not {dtype:?}", record.dtype));
            }
            let wanted =
                dims.iter().try_fold(dtype.bytes() as u128, |product, dim| product.checked_mul(u128::from(*dim)));
            if wanted != Some(u128::from(record.bytes)) || record.bytes > output.span.capacity() as u64 {
                return Err(format!("output {index} of {dims:?} has {} bytes", record.bytes));
            }
            output.written = Some(Written { bytes: record.bytes as usize, rank: record.rank, dims: record.dims });
        }
        Ok(())
    }

    /// Sleeps on the futex until the daemon publishes; false when `timeout` passed.
    pub(super) fn sleep(&mut self, timeout: Duration) -> Result<bool, Poisoned> {
        let ring = self.regions.completions();
        let Some(tail) = self.completions.prepare_sleep(&ring, ASLEEP)? else { return Ok(true) };
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        // Not private: the daemon, another process, wakes it. A signal or a tail that moved is as good as a wake-up.
        let slept = futex::wait(ring.tail, futex::Flags::empty(), tail, Some(&timeout));
        self.completions.wake(&ring);
        Ok(slept != Err(rustix::io::Errno::TIMEDOUT))
    }

    /// Asks the daemon to ring the doorbell for its next completion. False: one has come.
    pub(super) fn arm(&mut self) -> Result<bool, Poisoned> {
        let tail = self.completions.prepare_sleep(&self.regions.completions(), ASLEEP_ON_DOORBELL)?;
        self.armed = tail.is_some();
        Ok(self.armed)
    }

    pub(super) fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.completions.wake(&self.regions.completions());
        }
    }

    /// Whether the daemon still serves this connection. Takes the rings out of the doorbell.
    pub(super) fn is_peer_alive(&mut self) -> bool {
        let state = self.regions.state().load(Ordering::Acquire);
        self.doorbell.drain() == Peer::Alive && state != State::Poisoned as u32
    }
}

impl AsFd for Client {
    /// For an event loop: [`Client::arm`], then wait until this is readable, then [`Client::poll`] until it has nothing.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.doorbell()
    }
}

/// The absolute deadline of the wire; 0 is the session's SLO.
pub(super) fn deadline_ns(deadline: Deadline) -> u64 {
    let left = match deadline {
        Deadline::Slo => return 0,
        Deadline::Within(left) => left,
        Deadline::At(at) => match at.checked_duration_since(Instant::now()) {
            Some(left) => left,
            // Long past: any instant that has passed says so.
            None => return 1,
        },
    };
    let now = clock_gettime(ClockId::Monotonic);
    let now_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    now_ns.saturating_add(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX))
}

/// Writes the `index`th 64 bytes of a block.
fn store(block: &[AtomicU64], index: usize, record: [u64; 8]) {
    for (word, value) in block[index * 8..][..8].iter().zip(record) {
        word.store(value, Ordering::Relaxed);
    }
}

/// Reads each word once.
fn copy_words(words: &[AtomicU64], into: &mut [u8]) {
    for (chunk, word) in into.chunks_mut(8).zip(words) {
        chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()[..chunk.len()]);
    }
}
