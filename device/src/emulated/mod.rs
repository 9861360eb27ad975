//! Emulated devices: as many as wanted, each as fast as a profile says, all on one thread.
//!
//! A device does its sums when a batch is started: it begins when the batch before it is due, and is due its time later.
//! Nothing is ever added up from moments at which a thread happened to wake, so lateness does not accumulate. The thread keeps
//! the batches of all devices in a heap by due time. It copies a batch's bytes as soon as it sees it, before it is due, so
//! that a copy makes no batch late that is due after it.
//!
//! A device that takes no time at all ends a batch inside [`Device::start`], without the thread.

mod network;
mod profile_file;

pub use network::{EmulatedNetwork, Pace, Timing};
pub use profile_file::{
    EmulatedPrefix, EmulatedProfile, EmulatedSuffix, ProfileFileError, Times, read_profiles, read_times,
};

use crate::cpu::{EARLY_RING, earlies, fail};
use crate::{Batch, BatchId, Device, Early, Network, NetworkId, Outcome, Waker};
use rtrb::{Consumer, Producer, RingBuffer};
use rustix::thread::futex;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How emulated devices keep time.
#[derive(Clone, Debug)]
pub struct EmulatedOptions {
    /// Devices are called by this and their number.
    pub name: String,
    /// The last stretch before a batch is due is spun through, because the system wakes a thread up to this much late.
    pub spin_tail: Duration,
    /// With more devices than this the thread sleeps to the end: it would spin all the time.
    pub spin_devices_max: usize,
    /// Core of the thread.
    pub core: Option<usize>,
}

impl Default for EmulatedOptions {
    fn default() -> EmulatedOptions {
        EmulatedOptions {
            name: "emulated".to_owned(),
            spin_tail: Duration::from_micros(100),
            spin_devices_max: 64,
            core: None,
        }
    }
}

/// One emulated device. The thread that it shares ends with the last of them; batches that are not due by then are dropped.
pub struct EmulatedDevice {
    name: String,
    index: usize,
    thread: Arc<Thread>,
    networks: Vec<Installed>,
    prepared: VecDeque<Box<Batch>>,
    /// When the last started batch is due.
    busy_until: Instant,
    /// Batches that the thread has.
    outstanding: usize,
    ended: Consumer<Box<Batch>>,
    early: Consumer<Early>,
    /// Batches that ended inside `start`.
    at_once: VecDeque<Box<Batch>>,
    waker: Waker,
}

/// A network in service. Its timing is kept outside of the lock, which the thread holds while it copies a batch.
struct Installed {
    id: NetworkId,
    timing: Option<Timing>,
    network: Shared,
}

type Shared = Arc<Mutex<Box<dyn Network>>>;

/// Entries of a device's ring: at most two batches are outstanding.
const RING: usize = 4;

/// Starts the thread and `count` devices on it.
pub fn spawn(count: usize, options: EmulatedOptions, waker: Waker) -> io::Result<Vec<EmulatedDevice>> {
    let inbox = Arc::new(Inbox::default());
    let (outboxes, ended): (Vec<_>, Vec<_>) = (0..count).map(|_| RingBuffer::new(RING)).unzip();
    let (tells, early): (Vec<_>, Vec<_>) = (0..count).map(|_| RingBuffer::new(EARLY_RING)).unzip();
    let spin_tail = if count <= options.spin_devices_max { options.spin_tail } else { Duration::ZERO };
    let keeper = TimeKeeper {
        inbox: inbox.clone(),
        outboxes,
        tells,
        heap: BinaryHeap::new(),
        arrived: Vec::new(),
        taken: 0,
        order: 0,
        spin_tail,
        waker: waker.clone(),
    };
    let core = options.core;
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(format!("rota-{}", options.name)).spawn(move || {
        let result = core.map_or(Ok(()), |core| crate::cpu::pin(&[core]));
        let pinned = result.is_ok();
        // Without it the system may delay a wake-up by 50 us to merge it with others. Refusal only costs precision.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        // The receiver waits for exactly this message.
        let _ = ready.send(result);
        if pinned {
            keeper.run();
        }
    })?;
    let thread = Arc::new(Thread { inbox, handle: Some(thread) });
    is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("the emulating thread died at its start")))?;
    let device = |(index, (ended, early))| EmulatedDevice {
        name: format!("{}{index}", options.name),
        index,
        thread: thread.clone(),
        networks: Vec::new(),
        prepared: VecDeque::new(),
        busy_until: Instant::now(),
        outstanding: 0,
        ended,
        early,
        at_once: VecDeque::new(),
        waker: waker.clone(),
    };
    Ok(ended.into_iter().zip(early).enumerate().map(device).collect())
}

impl Device for EmulatedDevice {
    fn describe(&self) -> String {
        format!("{}: emulated", self.name)
    }

    fn install(&mut self, id: NetworkId, network: Box<dyn Network>) {
        self.remove(id);
        let timing = network.timing().cloned();
        self.networks.push(Installed { id, timing, network: Arc::new(Mutex::new(network)) });
    }

    fn remove(&mut self, id: NetworkId) {
        self.networks.retain(|installed| installed.id != id);
    }

    fn prepare(&mut self, batch: Box<Batch>) {
        self.prepared.push_back(batch);
    }

    fn start(&mut self, batch: BatchId) {
        let Some(index) = self.prepared.iter().position(|prepared| prepared.id == batch) else { return };
        let Some(mut batch) = self.prepared.swap_remove_back(index) else { return };
        let now = Instant::now();
        let Some(Installed { timing, network, .. }) = self.networks.iter().find(|n| n.id == batch.network) else {
            fail(&mut batch);
            return self.end_at_once(batch);
        };
        let takes = match timing {
            Some(timing) if timing.is_zero() && self.outstanding == 0 => {
                // With nothing outstanding nobody else holds the lock.
                network.lock().unwrap_or_else(PoisonError::into_inner).execute(&mut batch);
                return self.end_at_once(batch);
            }
            Some(timing) => timing.of(&batch),
            // A real network takes the time that it takes, on the thread.
            None => Duration::ZERO,
        };
        let network = network.clone();
        let begin = self.busy_until.max(now);
        self.busy_until = begin + takes;
        self.outstanding += 1;
        self.thread.inbox.push(Job { device: self.index, begin, due: self.busy_until, network, batch });
    }

    fn poll(&mut self) -> Option<Box<Batch>> {
        if let Some(batch) = self.at_once.pop_front() {
            return Some(batch);
        }
        let batch = self.ended.pop().ok()?;
        self.outstanding -= 1;
        Some(batch)
    }

    fn poll_early(&mut self) -> Option<Early> {
        self.early.pop().ok()
    }
}

impl EmulatedDevice {
    /// The waker is rung all the same: whoever starts a batch may sleep before it polls.
    fn end_at_once(&mut self, batch: Box<Batch>) {
        self.at_once.push_back(batch);
        (self.waker)();
    }
}

/// The thread that all devices share, as they hold it.
struct Thread {
    inbox: Arc<Inbox>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.inbox.stop.store(true, Ordering::Release);
        self.inbox.announce();
        if let Some(handle) = self.handle.take() {
            // A panic of the thread has been printed by then; there is nothing left to undo.
            let _ = handle.join();
        }
    }
}

/// Batches on their way to the thread.
#[derive(Default)]
struct Inbox {
    /// Locked to push one job or to swap the vector: tens of nanoseconds.
    jobs: Mutex<Vec<Job>>,
    /// Counts pushes; what the thread sleeps on. A push that changes it makes the sleep return.
    pushes: AtomicU32,
    sleeping: AtomicBool,
    stop: AtomicBool,
}

impl Inbox {
    fn push(&self, job: Job) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(job);
        self.announce();
    }

    fn announce(&self) {
        // Sequentially consistent, with `wait_until`: either the thread sees the count or this sees that it sleeps.
        self.pushes.fetch_add(1, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            // It fails only for a bad address.
            let _ = futex::wake(&self.pushes, futex::Flags::PRIVATE, 1);
        }
    }

    /// Sleeps until there are other than `seen` pushes or it is `until`.
    ///
    /// A futex with an absolute timeout is as precise as `clock_nanosleep` and can be woken early.
    fn wait_until(&self, seen: u32, until: Option<Instant>) {
        self.sleeping.store(true, Ordering::SeqCst);
        if self.pushes.load(Ordering::SeqCst) == seen {
            let until = until.map(timespec);
            // Woken, timed out, interrupted or changed meanwhile: the caller looks at everything again in any case.
            let _ = futex::wait_bitset(&self.pushes, futex::Flags::PRIVATE, seen, until.as_ref(), NonZeroU32::MAX);
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

struct Job {
    device: usize,
    begin: Instant,
    due: Instant,
    network: Shared,
    batch: Box<Batch>,
}

/// What the thread holds.
struct TimeKeeper {
    inbox: Arc<Inbox>,
    outboxes: Vec<Producer<Box<Batch>>>,
    tells: Vec<Producer<Early>>,
    heap: BinaryHeap<Reverse<Pending>>,
    /// Swapped with the inbox's vector, so that both keep their capacity.
    arrived: Vec<Job>,
    /// How many pushes there were when the inbox was last emptied.
    taken: u32,
    order: u64,
    spin_tail: Duration,
    waker: Waker,
}

/// What is due when.
struct Pending {
    due: Instant,
    /// Tells apart what is due at the same moment: first come, first ended.
    order: u64,
    device: usize,
    what: Due,
}

enum Due {
    Ended(Box<Batch>),
    Early(Early),
}

impl Ord for Pending {
    fn cmp(&self, other: &Pending) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Pending) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pending {
    fn eq(&self, other: &Pending) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pending {}

impl TimeKeeper {
    fn run(mut self) {
        while !self.inbox.stop.load(Ordering::Acquire) {
            let seen = self.inbox.pushes.load(Ordering::SeqCst);
            self.end_due();
            if seen != self.taken {
                self.taken = seen;
                self.take_arrivals();
                continue;
            }
            match self.heap.peek().map(|Reverse(next)| next.due) {
                None => self.inbox.wait_until(seen, None),
                Some(due) => match due.checked_sub(self.spin_tail) {
                    Some(until) if Instant::now() < until => self.inbox.wait_until(seen, Some(until)),
                    _ => std::hint::spin_loop(),
                },
            }
        }
    }

    /// Gives back every batch whose time has come, and tells of requests that are done before theirs.
    fn end_due(&mut self) {
        let mut ended = false;
        while self.heap.peek().is_some_and(|Reverse(next)| next.due <= Instant::now()) {
            let Some(Reverse(next)) = self.heap.pop() else { break };
            ended = true;
            match next.what {
                // Full only when the device is gone or its owner broke the contract: nobody waits for the batch.
                Due::Ended(batch) => drop(self.outboxes[next.device].push(batch)),
                Due::Early(_) if self.tells[next.device].is_abandoned() => {}
                Due::Early(early) => {
                    if self.tells[next.device].push(early).is_err() {
                        // Its owner is behind; what comes after this must not overtake it.
                        self.heap.push(Reverse(next));
                        break;
                    }
                }
            }
        }
        if ended {
            (self.waker)();
        }
    }

    /// Copies the bytes of the batches that have arrived, and files them under their due times.
    fn take_arrivals(&mut self) {
        let mut arrived = std::mem::take(&mut self.arrived);
        std::mem::swap(&mut arrived, &mut *self.inbox.jobs.lock().unwrap_or_else(PoisonError::into_inner));
        for Job { device, begin, due, network, mut batch } in arrived.drain(..) {
            let mut network = network.lock().unwrap_or_else(PoisonError::into_inner);
            network.execute(&mut batch);
            batch.started = Some(begin);
            if due > begin {
                batch.took = due - begin;
            }
            if let Some(timing) = network.timing().filter(|timing| timing.part_count() > 1) {
                self.file_early(device, begin, &mut batch, timing);
            }
            drop(network);
            self.file(device, due, Due::Ended(batch));
            self.end_due();
        }
        self.arrived = arrived;
    }

    /// Files what is to be told of requests that are done before their batch.
    fn file_early(&mut self, device: usize, begin: Instant, batch: &mut Batch, timing: &Timing) {
        let mut until = Duration::ZERO;
        for part in 0..timing.part_count() {
            until += timing.of_part(part, batch);
            for request in 0..batch.requests.len() {
                let is_done = until < batch.took && batch.requests[request].outcome == Outcome::Done;
                if is_done && timing.last_part(batch, request) == part {
                    for early in earlies(batch, request, begin, until) {
                        self.file(device, begin + until, Due::Early(early));
                    }
                    batch.requests[request].outcome = Outcome::Told;
                }
            }
        }
    }

    fn file(&mut self, device: usize, due: Instant, what: Due) {
        self.order += 1;
        self.heap.push(Reverse(Pending { due, order: self.order, device, what }));
    }
}

/// The moment on the clock that futexes and `Instant` share.
fn timespec(at: Instant) -> Timespec {
    let now = clock_gettime(ClockId::Monotonic);
    let ahead = at.saturating_duration_since(Instant::now());
    let nanoseconds = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec) + ahead.as_nanos() as i128;
    Timespec { tv_sec: (nanoseconds / 1_000_000_000) as i64, tv_nsec: (nanoseconds % 1_000_000_000) as _ }
}
