//! The cpu device: one pinned thread that executes batches through an engine's networks.
//!
//! Commands travel to the thread over a ring, batches back over another; neither side locks or allocates for a batch. The
//! thread spins on its ring for a while and then parks. On one set of cores nothing of a batch can overlap the one before it,
//! so a prepared batch waits as it is, and its inputs are gathered when it executes.

use crate::{Batch, BatchId, Device, Early, Network, NetworkId, Outcome, Span, Waker};
use rtrb::{Consumer, Producer, RingBuffer};
use rustix::thread::CpuSet;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How to run a cpu device.
#[derive(Clone, Debug)]
pub struct CpuOptions {
    /// "cpu0".
    pub name: String,
    /// What its networks run on, for people: "ONNX Runtime 1.32.0".
    pub engine: String,
    /// The executing thread is pinned to the first of these; the engine's own threads follow
    /// [`CompileOptions::cores`](crate::CompileOptions::cores). Empty: not pinned.
    pub cores: Vec<usize>,
    /// The executing thread may run on all of `cores` instead: those near a GPU.
    pub roams: bool,
    /// Threads that its networks were compiled for, for people.
    pub threads: usize,
    /// How long the thread looks for work before it sleeps.
    pub spin: Duration,
}

/// A pinned thread that executes one batch at a time. Dropping it waits for the batch that executes and ends the thread;
/// batches that have not started are dropped with it.
pub struct CpuDevice {
    description: String,
    commands: Producer<Command>,
    ended: Consumer<Box<Batch>>,
    early: Consumer<Early>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Entries of each ring: a few per batch, and at most two batches are outstanding.
const RING: usize = 16;
/// Outputs that are done before their batch has ended. Where they find no room, their requests are done when the batch is.
pub(crate) const EARLY_RING: usize = 1024;

/// How often a lost device is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// After this it is tried again to give a device that is back what it had: for as long that may have failed for want of memory.
const RECOVER_AGAIN: Duration = Duration::from_secs(1);

enum Command {
    Prepare(Box<Batch>),
    Start(BatchId),
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// What the networks execute on is gone, or not all that they had there is there again: written by the thread.
    lost: AtomicBool,
    /// Set after `trouble`, cleared by whoever takes it.
    troubled: AtomicBool,
    /// Why it is still lost although that is back. Cold: locked only when `troubled` is set.
    trouble: Mutex<Option<String>>,
    /// Set after a push to `changes`, cleared by the thread before it takes them.
    changed: AtomicBool,
    /// Networks to put into service, or out of it with `None`. Cold: the thread locks it only when `changed` is set.
    changes: Mutex<Vec<Change>>,
}

type Change = (NetworkId, Option<Box<dyn Network>>);

impl CpuDevice {
    /// Starts the thread. Fails when it can't be started or pinned: a core that is not the process's.
    pub fn spawn(options: CpuOptions, waker: Waker) -> io::Result<CpuDevice> {
        let (commands, inbox) = RingBuffer::new(RING);
        let (outbox, ended) = RingBuffer::new(RING);
        let (tells, early) = RingBuffer::new(EARLY_RING);
        let shared = Arc::new(Shared::default());
        let (pinned, is_pinned) = mpsc::sync_channel(1);
        let executor = Executor {
            inbox,
            outbox,
            tells,
            shared: shared.clone(),
            waker,
            spin: options.spin,
            networks: Vec::new(),
            prepared: VecDeque::new(),
            starts: VecDeque::new(),
            running: VecDeque::new(),
            recovery: Recovery::default(),
        };
        let cores = match options.roams {
            true => options.cores.clone(),
            false => options.cores.iter().copied().take(1).collect(),
        };
        let thread = std::thread::Builder::new().name(format!("rota-{}", options.name)).spawn(move || {
            let result = if cores.is_empty() { Ok(()) } else { pin(&cores) };
            let ready = result.is_ok();
            // The receiver waits for exactly this message.
            let _ = pinned.send(result);
            if ready {
                executor.run();
            }
        })?;
        is_pinned.recv().unwrap_or_else(|_| Err(io::Error::other("the executing thread died at its start")))?;
        let description = describe(&options);
        Ok(CpuDevice { description, commands, ended, early, shared, thread: Some(thread) })
    }

    fn send(&mut self, command: Command) {
        self.commands.push(command).expect("more commands than two outstanding batches can have");
        self.wake();
    }

    fn change(&self, id: NetworkId, network: Option<Box<dyn Network>>) {
        self.shared.changes.lock().unwrap_or_else(PoisonError::into_inner).push((id, network));
        self.shared.changed.store(true, Ordering::Release);
        self.wake();
    }

    /// Costs a system call only when the thread is parked.
    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Device for CpuDevice {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn install(&mut self, id: NetworkId, network: Box<dyn Network>) {
        self.change(id, Some(network));
    }

    fn remove(&mut self, id: NetworkId) {
        self.change(id, None);
    }

    fn prepare(&mut self, batch: Box<Batch>) {
        self.send(Command::Prepare(batch));
    }

    fn start(&mut self, batch: BatchId) {
        self.send(Command::Start(batch));
    }

    fn poll(&mut self) -> Option<Box<Batch>> {
        self.ended.pop().ok()
    }

    fn poll_early(&mut self) -> Option<Early> {
        self.early.pop().ok()
    }

    fn is_lost(&self) -> bool {
        self.shared.lost.load(Ordering::Acquire)
    }

    fn poll_trouble(&mut self) -> Option<String> {
        if !self.shared.troubled.swap(false, Ordering::Acquire) {
            return None;
        }
        self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for CpuDevice {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by then; there is nothing left to undo.
            let _ = thread.join();
        }
    }
}

/// The thread's own state.
struct Executor {
    inbox: Consumer<Command>,
    outbox: Producer<Box<Batch>>,
    tells: Producer<Early>,
    shared: Arc<Shared>,
    waker: Waker,
    spin: Duration,
    /// A handful per device, so that a scan beats a hash.
    networks: Vec<(NetworkId, Box<dyn Network>)>,
    /// Batches that have no start yet, or wait for the one before them.
    prepared: VecDeque<Box<Batch>>,
    starts: VecDeque<BatchId>,
    /// Begun, and not ended yet, in the order of their starts: only on a GPU, which goes from one to the next by itself. At most two.
    running: VecDeque<Box<Batch>>,
    recovery: Recovery,
}

/// The way back of a lost device, once what it executes on answers.
#[derive(Default)]
struct Recovery {
    /// It has failed, and is not tried again before.
    retry_at: Option<Instant>,
    /// That was said.
    told: bool,
}

impl Executor {
    fn run(mut self) {
        let mut idle_since = None;
        while !self.shared.stop.load(Ordering::Acquire) {
            let took_commands = self.take_commands();
            let goes_on = self.go_on();
            let executed = self.may_begin() && self.execute_next() || goes_on;
            let lost = self.shared.lost.load(Ordering::Relaxed);
            if lost && !executed {
                self.look_again();
            }
            if executed || took_commands {
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() < self.spin {
                std::hint::spin_loop();
            } else if lost {
                std::thread::park_timeout(LOOK_AGAIN);
                idle_since = None;
            } else {
                // A wake-up that comes between the look at the ring and here is not lost: `unpark` leaves a token.
                std::thread::park();
                idle_since = None;
            }
        }
    }

    fn take_commands(&mut self) -> bool {
        let mut took = false;
        let known = self.prepared.len();
        while let Ok(command) = self.inbox.pop() {
            took = true;
            match command {
                Command::Prepare(batch) => self.prepared.push_back(batch),
                Command::Start(id) => self.starts.push_back(id),
            }
        }
        // After the ring: a batch's network was announced before the batch was pushed.
        if self.shared.changed.swap(false, Ordering::AcqRel) {
            self.take_changes();
            took = true;
        }
        for batch in self.prepared.iter().skip(known) {
            if let Some((_, network)) = self.networks.iter_mut().find(|(installed, _)| *installed == batch.network) {
                network.stage(batch);
            }
        }
        took
    }

    fn take_changes(&mut self) {
        let changes = std::mem::take(&mut *self.shared.changes.lock().unwrap_or_else(PoisonError::into_inner));
        for (id, network) in changes {
            if let Some(index) = self.networks.iter().position(|(installed, _)| *installed == id) {
                unload(self.networks.swap_remove(index).1);
            }
            if let Some(network) = network {
                self.networks.push((id, network));
            }
        }
    }

    /// Looks whether what was lost is back, and gives the networks what they had there before anybody hears of it.
    fn look_again(&mut self) {
        if self.recovery.retry_at.is_some_and(|at| Instant::now() < at) || self.finds_lost() {
            return;
        }
        match self.networks.iter_mut().try_for_each(|(_, network)| network.recover()) {
            Ok(()) => {
                self.recovery = Recovery::default();
                self.shared.lost.store(false, Ordering::Release);
                (self.waker)();
            }
            // It is gone again.
            Err(_) if self.finds_lost() => {}
            Err(error) => {
                self.recovery.retry_at = Some(Instant::now() + RECOVER_AGAIN);
                if !std::mem::replace(&mut self.recovery.told, true) {
                    *self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                    self.shared.troubled.store(true, Ordering::Release);
                    (self.waker)();
                }
            }
        }
    }

    fn finds_lost(&mut self) -> bool {
        self.networks.iter_mut().any(|(_, network)| network.is_lost())
    }

    /// Whether the next batch may be begun: behind one that runs only what the GPU has the inputs of, since that keeps nobody waiting.
    fn may_begin(&self) -> bool {
        let Some(id) = self.starts.front() else { return false };
        let next = self.prepared.iter().find(|batch| batch.id == *id);
        let is_staged = |batch: &Batch| {
            let network = self.networks.iter().find(|(installed, _)| *installed == batch.network);
            network.is_some_and(|(_, network)| network.is_staged(batch))
        };
        self.running.is_empty() || self.running.len() == 1 && next.is_some_and(|next| is_staged(next))
    }

    /// Executes the batch whose start came first, if there is one; a start without a batch is forgotten.
    fn execute_next(&mut self) -> bool {
        let Some(id) = self.starts.pop_front() else { return false };
        let Some(index) = self.prepared.iter().position(|batch| batch.id == id) else { return true };
        let Some(mut batch) = self.prepared.swap_remove_back(index) else { return true };
        let ended = match self.networks.iter_mut().find(|(installed, _)| *installed == batch.network) {
            Some((_, network)) => {
                network.begin(&mut batch, &mut |batch, request| telling(&mut self.tells, &self.waker, batch, request))
            }
            None => {
                fail(&mut batch);
                true
            }
        };
        if ended && self.running.is_empty() {
            self.give_back(batch);
        } else {
            // Also one that has ended, so that they come back in order.
            self.running.push_back(batch);
        }
        true
    }

    /// Looks whether the first batch that was begun has ended; false when there is none.
    fn go_on(&mut self) -> bool {
        let Some(batch) = self.running.front_mut() else { return false };
        let network = self.networks.iter_mut().find(|(installed, _)| *installed == batch.network);
        let ended = network.is_none_or(|(_, network)| {
            network.ended(batch, &mut |batch, request| telling(&mut self.tells, &self.waker, batch, request))
        });
        if ended {
            let batch = self.running.pop_front().expect("it was looked at");
            // The next one had to wait for it.
            if let Some(next) = self.running.front_mut() {
                next.started = Some(Instant::now());
            }
            self.give_back(batch);
        } else {
            // The GPU works; whoever shares this core may, too.
            std::thread::yield_now();
        }
        true
    }

    fn give_back(&mut self, batch: Box<Batch>) {
        let failed = batch.requests.iter().any(|request| matches!(request.outcome, Outcome::Failed(_)));
        if failed
            && self.networks.iter_mut().any(|(installed, network)| *installed == batch.network && network.is_lost())
        {
            self.shared.lost.store(true, Ordering::Release);
        }
        let mut batch = Some(batch);
        while let Some(unsent) = batch.take() {
            // Full only when the other side does not poll: it has more batches outstanding than it may.
            if let Err(rtrb::PushError::Full(unsent)) = self.outbox.push(unsent) {
                if self.shared.stop.load(Ordering::Acquire) {
                    return;
                }
                std::thread::yield_now();
                batch = Some(unsent);
            }
        }
        (self.waker)();
    }
}

fn telling(tells: &mut Producer<Early>, waker: &Waker, batch: &mut Batch, request: usize) {
    if tell(tells, batch, request) {
        batch.requests[request].outcome = Outcome::Told;
        waker();
    }
}

/// Says that a request is done, and what was written of its outputs; false when there is no room to say it.
fn tell(tells: &mut Producer<Early>, batch: &Batch, request: usize) -> bool {
    let Some(started) = batch.started else { return false };
    let early = earlies(batch, request, started, started.elapsed());
    if tells.slots() < early.clone().count() {
        return false;
    }
    early.for_each(|early| tells.push(early).expect("there was room for all of its outputs"));
    true
}

/// What is to be said of a request that is done before its batch: one for each output that it wanted.
pub(crate) fn earlies(
    batch: &Batch,
    request: usize,
    started: Instant,
    took: Duration,
) -> impl Iterator<Item = Early> + Clone {
    let (spans, outputs) = (batch.spans.len() / batch.requests.len(), batch.written.len() / batch.requests.len());
    let wanted = batch.output_spans(request, spans - outputs);
    let is_wanted = |output: &usize| wanted[*output].offset != Span::UNWANTED;
    let last = (0..outputs).rev().find(is_wanted);
    let items = batch.requests.iter().map(|request| request.items).sum();
    let key = batch.requests[request].key;
    let written = &batch.written[request * outputs..];
    (0..outputs).filter(is_wanted).map(move |output| {
        let (written, last) = (written[output], last == Some(output));
        Early { key, output, written, last, started, took, items }
    })
}

/// Fails every request of a batch for a network that is not installed.
pub(crate) fn fail(batch: &mut Batch) {
    batch.started = Some(Instant::now());
    batch.took = Duration::ZERO;
    batch.written.clear();
    let text = format!("network {} is not installed on this device", batch.network.0);
    batch.requests.iter_mut().for_each(|request| request.outcome = Outcome::Failed(text.clone()));
}

/// Drops a network on a thread of its own: unloading takes milliseconds, which belong to the next batch.
fn unload(network: Box<dyn Network>) {
    // When no thread can be had, the network is dropped here, with the closure.
    let _ = std::thread::Builder::new().name("rota-unload".into()).spawn(move || {
        drop(network);
        release_memory();
    });
}

/// Gives the system back what has been freed. A network is many small pieces, and without this most of it stays with the process
/// for a next one that may never come. Takes milliseconds: not for a thread that serves.
pub fn release_memory() {
    // SAFETY: the function takes no pointer and may be called from any thread at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Pins the calling thread to `cores`.
pub(crate) fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        if core >= CpuSet::MAX_CPU {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no core {core}")));
        }
        set.set(core);
    }
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|error| io::Error::new(error.kind(), format!("threads can't be pinned to cores {cores:?}: {error}")))
}

fn describe(options: &CpuOptions) -> String {
    let threads = match options.threads {
        0 | 1 => String::new(),
        threads => format!(", {threads} threads"),
    };
    let cores = match &options.cores[..] {
        [] => String::new(),
        [core] => format!(", core {core}"),
        [first, .., last] if options.cores.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1])) => {
            format!(", cores {first}-{last}")
        }
        cores => format!(", cores {}", cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")),
    };
    format!("{}: {}{threads}{cores}", options.name, options.engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_names_engine_threads_and_cores() {
        let cases: [(&[usize], usize, &str); 5] = [
            (&[], 1, "cpu0: rten"),
            (&[3], 1, "cpu0: rten, core 3"),
            (&[0, 1, 2], 3, "cpu0: rten, 3 threads, cores 0-2"),
            (&[0, 2, 1], 2, "cpu0: rten, 2 threads, cores 0,2,1"),
            (&[1, 0], 2, "cpu0: rten, 2 threads, cores 1,0"),
        ];
        for (cores, threads, expected) in cases {
            let (name, engine) = ("cpu0".to_owned(), "rten".to_owned());
            let options =
                CpuOptions { name, engine, cores: cores.to_vec(), roams: false, threads, spin: Duration::ZERO };
            assert_eq!(describe(&options), expected);
        }
    }
}
