//! Neither side allocates for a request whose shapes it has seen.

mod support;

use rota_ipc::client::{Open, Request};
use rota_ipc::region::Regions;
use rota_ipc::ring::Producer;
use rota_ipc::server::{Connection, Record, RequestBlock, check_submission};
use rota_ipc::wire::{self, BlockHeader, Completion, DType, OutputRecord, Submission, TensorRecord};
use rota_ipc::{Client, ClientOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Daemon, socket_path};

/// Counts the allocations of each thread for itself, because others run beside it.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does all the work; the count is a plain thread-local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of this thread while `work` runs.
fn count(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn counter_counts() {
    assert_eq!(count(|| drop(std::hint::black_box(Box::new(7)))), 1);
}

#[test]
fn client_does_not_allocate_for_a_request_that_is_used_again() {
    let daemon = Daemon::start(socket_path("allocations"));
    for spin in [Duration::ZERO, Duration::from_micros(20)] {
        let options = ClientOptions { slots: 8, arena_bytes: 1 << 20, spin, ..ClientOptions::default() };
        let mut client = Client::connect(&daemon.path, options).unwrap();
        let session = client.open("double", Open::default()).unwrap();
        let mut requests: Vec<Request> = Vec::with_capacity(8);
        for _ in 0..4 {
            let mut request = client.request(&session).unwrap();
            request.input::<f32>("x", &[8, 4]).unwrap();
            requests.push(client.infer(request).unwrap().into_request());
        }
        let allocations = count(|| {
            for round in 0..500 {
                // Fewer items than before fit where more were.
                let items = 1 + round % 8;
                for mut request in requests.drain(..) {
                    request.input::<f32>("x", &[items, 4]).unwrap().fill(round as f32);
                    client.submit(request).unwrap();
                }
                while requests.len() < 4 {
                    let answer = client.wait(Duration::from_secs(10)).unwrap().unwrap();
                    let output = answer.output::<f32>("y").unwrap();
                    assert_eq!((output.dims[0], output.data[0]), (items, 2.0 * round as f32));
                    requests.push(answer.into_request());
                }
            }
        });
        assert_eq!(allocations, 0);
    }
    assert_eq!(daemon.switches.poisoned.load(Ordering::Relaxed), 0);
}

#[test]
fn server_does_not_allocate_for_a_good_request() {
    let (mut connection, [client, daemon, arena, _doorbell]) = Connection::create(8, 4096).unwrap();
    let regions = Regions::open(8, 4096, &[client, daemon, arena]).unwrap();
    let mut header = BlockHeader { inputs: 1, outputs: 1, sessions: 1, items: 1, ..BlockHeader::default() };
    header.session[0] = 1;
    let input = TensorRecord { dtype: DType::U8 as u8, bytes: 1, ..TensorRecord::default() };
    let words: [[u64; 8]; 3] = [
        zerocopy::transmute!(header),
        zerocopy::transmute!(input),
        zerocopy::transmute!(TensorRecord { offset: 64, ..input }),
    ];
    for (word, value) in regions.block(2).iter().zip(words.as_flattened()) {
        word.store(*value, Ordering::Relaxed);
    }
    let submission = Submission { op: wire::OP_INFER, slot: 2, block_bytes: 192, ..Submission::default() };
    let mut producer = Producer::default();
    let mut block = RequestBlock::default();
    let allocations = count(|| {
        for round in 0..100u32 {
            producer.push(&regions.submissions(), &zerocopy::transmute!(submission)).unwrap();
            assert_eq!(producer.publish(&regions.submissions()), u32::from(round > 0));
            connection.disarm();
            let mut out = [Submission::default(); 4];
            assert_eq!(connection.pop(&mut out), Ok(1));
            connection.reserve(0).unwrap();
            check_submission(&out[0], connection.slots()).unwrap();
            connection.read_block(out[0].slot, out[0].block_bytes, &mut block).unwrap();
            let record = [OutputRecord { bytes: 1, dtype: DType::U8 as u8, ..OutputRecord::default() }];
            connection.complete(Completion { slot: 2, status: 1, ..Completion::default() }, Record::Outputs(&record));
            connection.publish();
            regions.completions().head.store(round + 1, Ordering::Release);
            assert_eq!(connection.arm(), Ok(true));
        }
    });
    assert_eq!(allocations, 0);
}
