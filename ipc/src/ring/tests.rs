use super::*;

/// Shared words in ordinary memory; either side may be overwritten at will.
struct Memory {
    tail: AtomicU32,
    head: AtomicU32,
    need_wake: AtomicU32,
    slots: Vec<Slot>,
}

impl Memory {
    fn new(capacity: usize) -> Memory {
        let slots = (0..capacity).map(|_| Slot(std::array::from_fn(|_| AtomicU64::new(0)))).collect();
        Memory { tail: AtomicU32::new(0), head: AtomicU32::new(0), need_wake: AtomicU32::new(0), slots }
    }

    fn ring(&self) -> Ring<'_> {
        Ring { tail: &self.tail, head: &self.head, need_wake: &self.need_wake, slots: &self.slots }
    }
}

/// A small generator (xorshift64*), so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn descriptor(number: u64) -> Descriptor {
    std::array::from_fn(|word| number * 8 + word as u64)
}

/// The seed from the environment (`ROTA_SEED`), or a new one; printed, because the output of a failed test is shown.
fn seed() -> u64 {
    let given = std::env::var("ROTA_SEED").ok().map(|seed| seed.parse().expect("ROTA_SEED is a number"));
    let seed = given.unwrap_or_else(|| {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        clock.as_nanos() as u64 | 1
    });
    println!("ROTA_SEED={seed}");
    seed
}

#[test]
fn descriptors_come_out_in_order_across_the_wrap_of_the_cursors() {
    let memory = Memory::new(4);
    let near_wrap = u32::MAX - 5;
    memory.tail.store(near_wrap, Ordering::Relaxed);
    memory.head.store(near_wrap, Ordering::Relaxed);
    let mut producer = Producer { tail: near_wrap, published: near_wrap, head_seen: near_wrap };
    let mut consumer = Consumer { head: near_wrap, tail_seen: near_wrap };
    let mut random = Random(seed());
    let (mut pushed, mut popped) = (0, 0);
    while popped < 1_000 {
        for _ in 0..random.below(6) {
            let fits = producer.push(&memory.ring(), &descriptor(pushed)).unwrap();
            assert_eq!(fits, pushed - popped < 4);
            pushed += u64::from(fits);
        }
        assert_eq!(producer.publish(&memory.ring()), AWAKE);
        let mut out = [[0; 8]; 3];
        let count = consumer.pop(&memory.ring(), &mut out).unwrap();
        for got in &out[..count] {
            assert_eq!(*got, descriptor(popped));
            popped += 1;
        }
    }
}

#[test]
fn unpublished_descriptors_are_invisible() {
    let memory = Memory::new(4);
    let (mut producer, mut consumer) = (Producer::default(), Consumer::default());
    producer.push(&memory.ring(), &descriptor(1)).unwrap();
    let mut out = [[0; 8]; 4];
    assert_eq!(consumer.pop(&memory.ring(), &mut out), Ok(0));
    assert_eq!(producer.publish(&memory.ring()), AWAKE);
    assert_eq!(consumer.pop(&memory.ring(), &mut out), Ok(1));
}

#[test]
fn sleeper_is_announced_once_and_not_when_work_waits() {
    let memory = Memory::new(4);
    let (mut producer, mut consumer) = (Producer::default(), Consumer::default());
    assert_eq!(consumer.prepare_sleep(&memory.ring(), ASLEEP_ON_DOORBELL), Ok(Some(0)));
    assert_eq!(producer.publish(&memory.ring()), AWAKE, "nothing new: nobody is woken");
    producer.push(&memory.ring(), &descriptor(1)).unwrap();
    assert_eq!(producer.publish(&memory.ring()), ASLEEP_ON_DOORBELL);
    consumer.wake(&memory.ring());
    assert_eq!(consumer.prepare_sleep(&memory.ring(), ASLEEP), Ok(None));
    assert_eq!(memory.need_wake.load(Ordering::Relaxed), AWAKE);
    assert_eq!(consumer.pop(&memory.ring(), &mut [[0; 8]; 1]), Ok(1));
}

#[test]
fn cursors_that_can_not_be_right_poison() {
    let memory = Memory::new(4);
    let (mut producer, mut consumer) = (Producer::default(), Consumer::default());
    for number in 0..3 {
        producer.push(&memory.ring(), &descriptor(number)).unwrap();
    }
    let _ = producer.publish(&memory.ring());
    for head in [4, 5, u32::MAX] {
        memory.head.store(head, Ordering::Relaxed);
        assert_eq!(producer.free(&memory.ring()), Err(Poisoned::HeadOutside { head, oldest: 0, tail: 3 }));
    }
    memory.head.store(2, Ordering::Relaxed);
    assert_eq!(producer.free(&memory.ring()), Ok(3));
    memory.head.store(1, Ordering::Relaxed);
    assert_eq!(producer.free(&memory.ring()), Err(Poisoned::HeadOutside { head: 1, oldest: 2, tail: 3 }));

    assert_eq!(consumer.pop(&memory.ring(), &mut [[0; 8]; 3]), Ok(3));
    for tail in [2, 8, u32::MAX] {
        memory.tail.store(tail, Ordering::Relaxed);
        let poisoned = Err(Poisoned::TailTooFar { tail, head: 3, capacity: 4 });
        assert_eq!(consumer.pop(&memory.ring(), &mut [[0; 8]; 3]), poisoned);
        assert_eq!(consumer.prepare_sleep(&memory.ring(), ASLEEP).map(|_| 0), poisoned);
    }
}

#[test]
fn head_may_not_pass_what_was_published() {
    let memory = Memory::new(4);
    let mut producer = Producer::default();
    producer.push(&memory.ring(), &descriptor(0)).unwrap();
    memory.head.store(1, Ordering::Relaxed);
    assert_eq!(producer.free(&memory.ring()), Err(Poisoned::HeadOutside { head: 1, oldest: 0, tail: 0 }));
}

/// Whatever a hostile peer writes, each call ends, moves our cursors only within the ring, and gives out no more than it holds.
#[test]
fn hostile_cursors_never_move_ours_outside_the_ring() {
    let mut random = Random(seed());
    let mut poisoned = [0u32; 2];
    for _ in 0..200_000 {
        let capacity = 1usize << (3 + random.below(3));
        let start = random.next() as u32;
        let memory = Memory::new(capacity);
        memory.head.store(start, Ordering::Relaxed);
        memory.tail.store(start, Ordering::Relaxed);
        let mut producer = Producer { tail: start, published: start, head_seen: start };
        let mut consumer = Consumer { head: start, tail_seen: start };
        for _ in 0..4 {
            // Near our cursor half of the time, or it would only ever be refused.
            let near = |random: &mut Random, cursor: u32| match random.below(2) {
                0 => cursor.wrapping_add(random.below(2 * capacity as u64 + 8) as u32).wrapping_sub(4),
                _ => random.next() as u32,
            };
            memory.tail.store(near(&mut random, consumer.head), Ordering::Relaxed);
            let mut out = [[0; 8]; 16];
            let before = consumer.head;
            match consumer.pop(&memory.ring(), &mut out) {
                Ok(count) => assert_eq!(consumer.head, before.wrapping_add(count as u32)),
                Err(_) => {
                    assert_eq!(consumer.head, before);
                    poisoned[0] += 1;
                }
            }
            assert!(consumer.tail_seen.wrapping_sub(consumer.head) as usize <= capacity);
            let _ = consumer.prepare_sleep(&memory.ring(), ASLEEP);

            memory.head.store(near(&mut random, producer.head_seen), Ordering::Relaxed);
            for number in 0..random.below(capacity as u64 * 2) {
                let before = producer.tail;
                let pushed = producer.push(&memory.ring(), &descriptor(number));
                assert_eq!(producer.tail, before.wrapping_add(u32::from(pushed == Ok(true))));
                poisoned[1] += u32::from(pushed.is_err());
                if pushed != Ok(true) {
                    break;
                }
            }
            let _ = producer.publish(&memory.ring());
            assert!(producer.tail.wrapping_sub(producer.head_seen) as usize <= capacity);
        }
    }
    println!("poisoned: {} consumers, {} producers", poisoned[0], poisoned[1]);
    assert!(poisoned.iter().all(|count| *count > 10_000));
}
