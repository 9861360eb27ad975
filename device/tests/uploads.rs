//! Weights of a large model on their way to a GPU on which batches of another run: by the order in which the stand-in driver is given copies
//! and does them, never by time.

mod common;

use common::standin::{Moment, Standin};
use common::{execute, inputs};
use rota_device::Outcome;
use rota_device::cuda::{CudaEngine, Precision};
use rota_device::engine::{CompileOptions, Engine};
use rota_device::sample::{self, Hints};
use rota_graph::examples::Sketch;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

/// Copies of so many bytes are pieces of weights: a batch's are half as large again here.
const PIECE_BYTES: u64 = 4 << 20;
/// Requests of a batch, each of which is a copy.
const REQUESTS: usize = 4;

/// By batch, in order: the pieces that its inputs had to let go first. Those that were with the GPU when one of its copies was given, and
/// those that were given later and done before all of its copies.
fn pieces_before(moments: &[Moment]) -> Vec<BTreeSet<u64>> {
    let mut with_gpu = BTreeSet::<u64>::new();
    let mut batches: Vec<BTreeSet<u64>> = Vec::new();
    let mut waiting = BTreeMap::<u64, usize>::new();
    let mut copies = 0;
    for moment in moments {
        match (moment.done, moment.bytes) {
            (false, PIECE_BYTES) => drop(with_gpu.insert(moment.copy)),
            (false, _) => {
                if copies % REQUESTS == 0 {
                    batches.push(BTreeSet::new());
                }
                let batch = copies / REQUESTS;
                batches[batch].extend(&with_gpu);
                waiting.insert(moment.copy, batch);
                copies += 1;
            }
            (true, _) if with_gpu.remove(&moment.copy) => {
                for &batch in waiting.values() {
                    batches[batch].insert(moment.copy);
                }
            }
            (true, _) => drop(waiting.remove(&moment.copy)),
        }
    }
    batches
}

#[test]
fn pieces_before_a_batch_are_found_in_a_planted_order() {
    let given = |copy: u64, bytes: u64| Moment { copy, bytes, done: false };
    let done = |copy: u64| Moment { copy, bytes: 0, done: true };
    let piece = |copy| given(copy, PIECE_BYTES);
    // One is over; one comes in between and is done first; one is with the GPU until the second batch comes.
    let mut moments =
        vec![piece(0), done(0), given(1, 64), piece(2), given(3, 64), given(4, 64), given(5, 64), done(2)];
    moments.extend([piece(6), done(1), done(3), done(4), done(5), given(7, 64), done(6), given(8, 64), given(9, 64)]);
    // One is given behind the second batch and overtakes it; one waits for it.
    moments.extend([given(10, 64), piece(11), done(11), done(7), done(8), done(9), piece(12), done(10), done(12)]);
    assert_eq!(pieces_before(&moments), [BTreeSet::from([2]), BTreeSet::from([6, 11])]);
}

/// A model that takes half as much again as a piece for an item, and looks at 16 bytes of it.
fn small() -> PathBuf {
    let mut sketch = Sketch::new("small");
    let x = sketch.input("x", &[-1, 3 << 19], "n");
    let (from, to, axis) = (sketch.ints("from", &[0]), sketch.ints("to", &[4]), sketch.ints("axis", &[1]));
    let few = sketch.node("Slice", &[&x, &from, &to, &axis], "few", &[]);
    sketch.node("Relu", &[&few], "y", &[]);
    sketch.output("y", &[-1, 4], "n");
    written("small", sketch)
}

/// A model of 32 MB of weights.
fn large() -> PathBuf {
    const ROWS: usize = 2048;
    const WIDTH: usize = 4096;
    let weights: Vec<f32> = (0..ROWS * WIDTH).map(|at| at as f32).collect();
    let mut sketch = Sketch::new("large");
    let x = sketch.input("x", &[-1, ROWS as i64], "n");
    let w = sketch.floats("w", &[ROWS as u64, WIDTH as u64], &weights);
    sketch.node("MatMul", &[&x, &w], "y", &[]);
    sketch.output("y", &[-1, WIDTH as i64], "n");
    written("large", sketch)
}

fn written(name: &str, sketch: Sketch) -> PathBuf {
    let file = std::env::temp_dir().join(format!("rota-uploads-{name}-{}.onnx", std::process::id()));
    std::fs::write(&file, sketch.into_file()).unwrap();
    file
}

#[test]
fn while_a_large_model_loads_no_batch_has_more_than_one_piece_of_it_in_front() {
    // So slow that a batch comes while a piece is on its way.
    let standin = Standin::load(&[("ROTA_STANDIN_COPY_US_PER_MB", "20000")]);
    let engine = CudaEngine::open(0, Precision::Fp32).unwrap();
    let options = CompileOptions { max_batch: Some(REQUESTS as u32), ..CompileOptions::default() };
    let (small, large) = (small(), large());
    let mut served = engine.compile(&small, &options).unwrap();
    let class = sample::class_of(served.signature(), &Hints::default()).unwrap();
    served.warm(&class).unwrap();
    let signature = served.signature().clone();
    let requests: Vec<_> = (0..REQUESTS as u64).map(|seed| inputs(&signature, 1, &Hints::default(), seed)).collect();
    let mut loaded = engine.compile(&large, &options).unwrap();
    let class = sample::class_of(loaded.signature(), &Hints::default()).unwrap();

    let (running, ended) = (Barrier::new(2), AtomicBool::new(false));
    let moments = standin.traced(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut executed = 0;
                while !ended.load(Ordering::Relaxed) {
                    let results = execute(&mut *served, &requests, &vec![4096; signature.outputs.len()]);
                    assert!(results.iter().all(|(outcome, _)| *outcome == Outcome::Done));
                    executed += 1;
                    if executed == 1 {
                        running.wait();
                    }
                }
            });
            running.wait();
            loaded.warm(&class).unwrap();
            ended.store(true, Ordering::Relaxed);
        });
    });
    [small, large].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let piece = |moment: &Moment| !moment.done && moment.bytes == PIECE_BYTES;
    assert_eq!(moments.iter().filter(|moment| piece(moment)).count(), 8, "32 MB in pieces of 4");
    let (first, last) = (moments.iter().position(piece).unwrap(), moments.iter().rposition(piece).unwrap());
    let before = pieces_before(&moments);
    assert!(before.iter().all(|pieces| pieces.len() <= 1), "{before:?}");
    assert!(before.iter().any(|pieces| pieces.len() == 1), "none met a piece: nothing was tried");
    let between = moments[first..last].iter().filter(|moment| !moment.done && !piece(moment)).count();
    assert!(between >= REQUESTS, "batches go on while the model loads: {between} copies between its pieces");
    assert_eq!(loaded.memory_bytes(), 32 << 20);
}
