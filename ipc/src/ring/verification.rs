//! The ring under loom: every interleaving, and every value that the memory model lets a load return, within the bounds below.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p rota-ipc --lib --release verification`

use super::*;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// Each of the ring's orderings is needed within this bound: with one of them weakened or a fence left out, a test fails.
const PREEMPTIONS_MAX: usize = 5;
const CAPACITY: usize = 2;

struct Memory {
    tail: AtomicU32,
    head: AtomicU32,
    need_wake: AtomicU32,
    slots: Vec<Slot>,
    /// The kernel's futex bucket: it checks the word under this lock, and wakes under it.
    bucket: Mutex<()>,
    woken: Condvar,
    /// The doorbell's socket: bytes that wait in it.
    bell: Mutex<u32>,
    rung: Condvar,
}

impl Memory {
    fn new() -> Arc<Memory> {
        let slots = (0..CAPACITY).map(|_| Slot(std::array::from_fn(|_| AtomicU64::new(0)))).collect();
        Arc::new(Memory {
            tail: AtomicU32::new(0),
            head: AtomicU32::new(0),
            need_wake: AtomicU32::new(0),
            slots,
            bucket: Mutex::new(()),
            woken: Condvar::new(),
            bell: Mutex::new(0),
            rung: Condvar::new(),
        })
    }

    fn ring(&self) -> Ring<'_> {
        Ring { tail: &self.tail, head: &self.head, need_wake: &self.need_wake, slots: &self.slots }
    }

    /// FUTEX_WAIT at `tail`; loom reports a deadlock if nobody wakes it.
    fn futex_wait(&self, expected: u32) {
        let bucket = self.bucket.lock().unwrap();
        if self.tail.load(Ordering::Relaxed) == expected {
            drop(self.woken.wait(bucket).unwrap());
        }
    }

    fn futex_wake(&self) {
        let _bucket = self.bucket.lock().unwrap();
        self.woken.notify_one();
    }

    fn bell_wait(&self) {
        let mut bell = self.bell.lock().unwrap();
        while *bell == 0 {
            bell = self.rung.wait(bell).unwrap();
        }
        *bell = 0;
    }

    fn bell_ring(&self) {
        *self.bell.lock().unwrap() += 1;
        self.rung.notify_one();
    }

    fn wake(&self, how: u32) {
        match how {
            AWAKE => {}
            ASLEEP => self.futex_wake(),
            _ => self.bell_ring(),
        }
    }
}

fn descriptor(number: u64) -> Descriptor {
    std::array::from_fn(|word| number * 8 + word as u64)
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(model);
}

/// The consumer sleeps in the way `how` whenever it finds nothing, and takes `total` in all.
fn consume(memory: &Memory, total: u64, how: u32) {
    let mut consumer = Consumer::default();
    let mut taken = 0;
    while taken < total {
        let mut out = [[0; 8]; CAPACITY];
        let count = consumer.pop(&memory.ring(), &mut out).unwrap();
        for got in &out[..count] {
            assert_eq!(*got, descriptor(taken), "torn, repeated or out of order");
            taken += 1;
        }
        if count == 0
            && let Some(tail) = consumer.prepare_sleep(&memory.ring(), how).unwrap()
        {
            match how {
                ASLEEP => memory.futex_wait(tail),
                _ => memory.bell_wait(),
            }
            consumer.wake(&memory.ring());
        }
    }
}

/// `total` fits the ring, so the producer never waits.
fn wake_ups(total: u64, how: u32) {
    check(move || {
        let memory = Memory::new();
        let consumer = thread::spawn({
            let memory = memory.clone();
            move || consume(&memory, total, how)
        });
        let mut producer = Producer::default();
        for number in 0..total {
            assert_eq!(producer.push(&memory.ring(), &descriptor(number)), Ok(true));
            memory.wake(producer.publish(&memory.ring()));
        }
        consumer.join().unwrap();
    });
}

#[test]
fn futex_sleeper_is_never_left_asleep() {
    wake_ups(2, ASLEEP);
}

#[test]
fn doorbell_sleeper_is_never_left_asleep() {
    wake_ups(2, ASLEEP_ON_DOORBELL);
}

/// More descriptors than slots: a slot is overwritten only when its words were copied out.
#[test]
fn descriptors_are_neither_torn_nor_lost_nor_repeated_when_slots_are_reused() {
    check(|| {
        let memory = Memory::new();
        let consumer = thread::spawn({
            let memory = memory.clone();
            move || {
                let mut consumer = Consumer::default();
                let mut taken = 0;
                while taken < 3 {
                    let mut out = [[0; 8]; 1];
                    match consumer.pop(&memory.ring(), &mut out).unwrap() {
                        0 => thread::yield_now(),
                        _ => {
                            assert_eq!(out[0], descriptor(taken));
                            taken += 1;
                        }
                    }
                }
            }
        });
        let mut producer = Producer::default();
        for number in 0..3 {
            while !producer.push(&memory.ring(), &descriptor(number)).unwrap() {
                thread::yield_now();
            }
            let _ = producer.publish(&memory.ring());
        }
        consumer.join().unwrap();
    });
}

/// What the descriptor speaks of (a block, a record) is visible to whoever sees the descriptor.
#[test]
fn record_written_before_the_publish_is_seen_with_the_descriptor() {
    check(|| {
        let memory = Memory::new();
        let record = Arc::new(AtomicU64::new(0));
        let consumer = thread::spawn({
            let (memory, record) = (memory.clone(), record.clone());
            move || {
                let mut consumer = Consumer::default();
                let mut out = [[0; 8]; 1];
                while consumer.pop(&memory.ring(), &mut out).unwrap() == 0 {
                    thread::yield_now();
                }
                assert_eq!(record.load(Ordering::Relaxed), 7);
            }
        });
        let mut producer = Producer::default();
        record.store(7, Ordering::Relaxed);
        producer.push(&memory.ring(), &descriptor(0)).unwrap();
        let _ = producer.publish(&memory.ring());
        consumer.join().unwrap();
    });
}

/// What the consumer did before it freed a slot is over for a producer that sees the slot free. Loom never lets a load
/// return a later store, so it can't show a torn slot for this; instead it follows who may touch a cell.
#[test]
fn slot_that_is_seen_free_is_no_longer_read() {
    check(|| {
        let memory = Memory::new();
        let cell = Arc::new(loom::cell::UnsafeCell::new(0));
        let consumer = thread::spawn({
            let (memory, cell) = (memory.clone(), cell.clone());
            move || {
                let mut consumer = Consumer::default();
                let mut out = [[0; 8]; 1];
                while consumer.pop(&memory.ring(), &mut out).unwrap() == 0 {
                    thread::yield_now();
                }
                // SAFETY: the producer wrote it before it published both entries, and writes again only when both are free.
                assert_eq!(cell.with(|value| unsafe { *value }), 7);
                assert_eq!(consumer.pop(&memory.ring(), &mut out), Ok(1));
            }
        });
        let mut producer = Producer::default();
        // SAFETY: nothing is published yet, so the consumer does not read it.
        cell.with_mut(|value| unsafe { *value = 7 });
        for number in 0..2 {
            producer.push(&memory.ring(), &descriptor(number)).unwrap();
        }
        let _ = producer.publish(&memory.ring());
        while producer.free(&memory.ring()).unwrap() < 2 {
            thread::yield_now();
        }
        // SAFETY: the consumer frees the second entry after it has read the cell.
        cell.with_mut(|value| unsafe { *value = 8 });
        consumer.join().unwrap();
    });
}
