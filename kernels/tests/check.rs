//! What a GPU would not forgive: every kernel runs under the checker in several orders of turns, and planted mistakes are caught.

#[path = "support/cases.rs"]
mod cases;
mod support;

use std::collections::BTreeSet;

use rota_kernels::host::{Host, Memory, Order, checking_library, folder};
use rota_kernels::params::SoftmaxParams;
use rota_kernels::{Cost, Kernel, Launch, Pointer};
use support::Numbers;

const ORDERS: [Order; 5] =
    [Order::Forward, Order::Reversed, Order::Random(1), Order::Random(2), Order::Random(0xdead_beef)];

#[test]
fn the_cases_use_every_kernel_of_the_catalogue() {
    let used: BTreeSet<&str> =
        cases::all().iter().flat_map(|case| &case.launches).map(|launch| launch.kernel.name).collect();
    let known: BTreeSet<&str> = rota_kernels::kernels().iter().map(|kernel| kernel.name).collect();
    assert_eq!(known.difference(&used).collect::<Vec<_>>(), Vec::<&&str>::new(), "kernels that no case launches");
}

#[test]
fn every_kernel_gives_the_same_bits_in_every_order_and_no_access_is_a_race_or_out_of_bounds() {
    let host = Host::checking().unwrap();
    for mut case in cases::all() {
        let before = case.memory.snapshot();
        let mut first = None;
        for order in ORDERS {
            case.memory.restore(&before);
            for launch in &case.launches {
                host.run_in(order, launch, &mut case.memory)
                    .unwrap_or_else(|error| panic!("{}, {order:?}: {error}\n{launch:?}", case.name));
            }
            let after = case.memory.snapshot();
            let first = first.get_or_insert_with(|| after.clone());
            assert!(*first == after, "{} gives other bits in {order:?}", case.name);
        }
        assert!(first != Some(before), "{} changed nothing", case.name);
    }
}

/// Operands that end too early, by a byte at first: most cases come to the last byte, slices and paddings do not.
#[test]
fn every_kernel_is_refused_what_lies_past_the_end_of_what_it_reads_and_of_what_it_writes() {
    let host = Host::checking().unwrap();
    let mut refused: BTreeSet<(&str, &str)> = BTreeSet::new();
    for mut case in cases::all() {
        for launch in &case.launches {
            // Some are told by tables in memory where their operands are.
            let by_table = ["moves", "grouped"].contains(&case.name);
            let own = launch.pointers().filter_map(|pointer| case.memory.find(pointer)).collect::<BTreeSet<_>>();
            for buffer in (0..case.memory.count()).filter(|buffer| by_table || own.contains(buffer)) {
                let run = |memory: &mut Memory| host.run_in(Order::Forward, launch, memory).err();
                let mut shares = [1.0 - 1e-9, 0.5, 0.1].into_iter();
                let Some(error) = shares.find_map(|share| case.memory.shortened(buffer, share, run)) else { continue };
                assert!(error.contains("outside of every buffer"), "{}: {error}", case.name);
                let verb = ["reads", "writes"].into_iter().find(|verb| error.contains(verb));
                refused.extend(verb.map(|verb| (launch.kernel.name, verb)));
            }
            // Whole, for the launches behind it.
            host.run_in(Order::Forward, launch, &mut case.memory).unwrap();
        }
    }
    let kernels = rota_kernels::kernels();
    let all = kernels.iter().flat_map(|kernel| [(kernel.name, "reads"), (kernel.name, "writes")]);
    let missed: Vec<_> = all.filter(|access| !refused.contains(access)).collect();
    assert!(missed.is_empty(), "let through: {missed:?}");
}

/// The planted kernels, and words of what is said of each; nothing for those that are right.
const PLANTED: [(Kernel, &str); 20] = [
    (planted("planted_right"), ""),
    (
        planted("planted_missing_barrier"),
        "writes byte 0 of shared array 0, which thread 63 of block 0 read, and no barrier between them: a race",
    ),
    (planted("planted_missing_second_barrier"), "of shared array 0, which thread"),
    (planted("planted_shuffle_for_a_barrier"), "a race"),
    (planted("planted_warp_barrier_is_enough"), ""),
    (planted("planted_warp_barrier_is_not_enough"), "a race"),
    (planted("planted_reads_past_the_end"), "thread 63 of block 0 reads 4 bytes at"),
    (planted("planted_writes_past_the_end"), "thread 63 of block 0 writes 4 bytes at"),
    (planted("planted_past_the_end_of_shared_memory"), "shared memory outside of every array"),
    (planted("planted_uninitialised_shared_memory"), "reads byte 28 of shared array 0, which nobody has written"),
    (planted("planted_uninitialised_output"), "reads byte 0 of buffer 1, which nobody has written"),
    (planted("planted_wrong_stride"), "byte 124 of buffer 1, which thread 31 of block 0 wrote"),
    (planted("planted_divergent_barrier"), "threads ended while others wait at __syncthreads"),
    (planted("planted_two_barriers_for_one"), "threads wait at different __syncthreads"),
    (planted("planted_lanes_missing"), "a warp operation lacks some of its lanes"),
    (planted("planted_plain_flag"), "byte 0 of buffer 1, which thread 0 of block 0 wrote"),
    (planted("planted_atomic_flag"), ""),
    (planted("planted_copies_waited_for"), ""),
    (planted("planted_copies_not_waited_for"), "to which a copy is under way that was not waited for"),
    (planted("planted_copies_without_a_barrier"), "a race"),
];

const fn planted(name: &'static str) -> Kernel {
    Kernel { name, params: "SoftmaxParams", params_bytes: size_of::<SoftmaxParams>(), pointers: 2, blocks: &[32, 64] }
}

#[test]
fn each_planted_mistake_is_caught_and_what_is_right_passes() {
    static KERNELS: [(Kernel, &str); 20] = PLANTED;
    let library = checking_library("librota_planted.so", &folder().join("host/planted"));
    let host = Host::open(library).unwrap();
    for (kernel, expected) in &KERNELS {
        let mut memory = Memory::default();
        let x = memory.upload(&Numbers::new(1).take(64));
        let y = memory.alloc(64 * 4);
        let params = SoftmaxParams { x, y, outer: 1, columns: 64, inner: 1, log: 0 };
        let two_blocks = kernel.name == "planted_wrong_stride";
        let launch = Launch {
            kernel,
            grid: [1 + u32::from(two_blocks), 1, 1],
            block: [if two_blocks { 32 } else { 64 }, 1, 1],
            shared_bytes: 0,
            params: zerocopy::IntoBytes::as_bytes(&params).to_vec(),
            cost: Cost::default(),
        };
        match host.run_in(Order::Forward, &launch, &mut memory) {
            Ok(()) => assert_eq!(*expected, "", "{} passed", kernel.name),
            Err(error) => assert!(!expected.is_empty() && error.contains(expected), "{}: {error}", kernel.name),
        }
    }
}

#[test]
fn launches_that_a_driver_refuses_are_refused() {
    let host = Host::load().unwrap();
    let mut case = cases::all().remove(0);
    let launch = case.launches.remove(0);
    let refused = |launch: Launch, memory: &mut Memory| host.run(&launch, memory).unwrap_err();
    let large = Launch { block: [1024, 2, 1], ..launch.clone() };
    assert!(refused(large, &mut case.memory).contains("threads in a block, its launch bound is"));
    let empty = Launch { grid: [0, 1, 1], ..launch.clone() };
    assert!(refused(empty, &mut case.memory).contains("grid axis 0 is 0"));
    let deep = Launch { grid: [1, 70_000, 1], ..launch.clone() };
    assert!(refused(deep, &mut case.memory).contains("grid axis 1 is 70000, allowed are 1 to 65535"));
    let mut short = launch.clone();
    short.params.truncate(short.params.len() - 8);
    assert!(refused(short, &mut case.memory).contains("the kernel takes"));
    let mut elsewhere = launch;
    elsewhere.relocate(|_| Pointer(64));
    assert!(refused(elsewhere, &mut case.memory).contains("0x40 is in no buffer"));
}
