//! `batch.cu` on the host, byte by byte.

mod support;

use rota_kernels::host::{Host, Memory};
use rota_kernels::params::MoveEntry;
use rota_kernels::{Move, Pointer};
use support::Numbers;

#[test]
fn pieces_of_any_length_and_place_arrive_and_those_past_the_count_stay() {
    let mut numbers = Numbers::new(1);
    let mut memory = Memory::default();
    // Length, how far the source and the target are from alignment, and whether there is a source.
    let pieces = [
        (4096, 0, 0, true),
        (1001, 4, 8, true),
        (77, 1, 0, true),
        (0, 0, 0, true),
        (200, 0, 4, false),
        (64, 0, 0, true),
    ];
    let mut entries = Vec::new();
    let mut expected = Vec::new();
    for (bytes, from, to, real) in pieces {
        let source: Vec<u8> = (0..bytes + from).map(|_| numbers.next_u64() as u8).collect();
        let target = memory.alloc(bytes + to + 16);
        let mut after = memory.download::<u8>(target, bytes + to + 16);
        let counts = entries.len() + 1 < pieces.len();
        for i in (0..bytes).filter(|_| counts) {
            after[to + i] = if real { source[from + i] } else { 0 };
        }
        let source = memory.upload(&source);
        entries.push(MoveEntry {
            source: if real { Pointer(source.0 + from as u64) } else { Pointer::NONE },
            target: Pointer(target.0 + to as u64),
            bytes: bytes as u64,
        });
        expected.push((target, after));
    }
    let count = memory.upload(&[entries.len() as u32 - 1]);
    let all = Move { entries: memory.upload(&entries), count, entries_max: 100, bytes_max: 4096 };
    for threads in [64, 128, 256] {
        Host::load().unwrap().run(&all.launch_with(threads), &mut memory).unwrap();
        for (target, after) in &expected {
            assert_eq!(&memory.download::<u8>(*target, after.len()), after);
        }
    }
}
