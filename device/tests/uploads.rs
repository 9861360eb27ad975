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
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

/// Copies of so many bytes are pieces of weights: a batch's are half as large here.
const PIECE_BYTES: u64 = 4 << 20;
/// Requests of a batch, each of which is a copy.
const REQUESTS: usize = 4;

/// By batch, in order: pieces that were with the GPU when one of its copies was given.
fn pieces_in_front(moments: &[Moment]) -> Vec<usize> {
    let (mut with_gpu, mut front) = (BTreeSet::<u64>::new(), BTreeSet::<u64>::new());
    let (mut counts, mut copies) = (Vec::new(), 0);
    for moment in moments {
        match (moment.done, moment.bytes) {
            (true, _) => drop(with_gpu.remove(&moment.copy)),
            (false, PIECE_BYTES) => drop(with_gpu.insert(moment.copy)),
            (false, _) => {
                front.extend(&with_gpu);
                copies += 1;
                if copies == REQUESTS {
                    counts.push(std::mem::take(&mut front).len());
                    copies = 0;
                }
            }
        }
    }
    counts
}

/// Pieces that were done before a batch's copy which was given before them.
fn pieces_that_overtook(moments: &[Moment]) -> usize {
    let (mut pieces, mut waiting) = (BTreeSet::<u64>::new(), BTreeSet::<u64>::new());
    let mut overtook = 0;
    for moment in moments {
        match (moment.done, moment.bytes) {
            (false, PIECE_BYTES) => drop(pieces.insert(moment.copy)),
            (false, _) => drop(waiting.insert(moment.copy)),
            // Copies are numbered as they are given.
            (true, _) if pieces.contains(&moment.copy) => {
                overtook += usize::from(waiting.range(..moment.copy).next().is_some());
            }
            (true, _) => drop(waiting.remove(&moment.copy)),
        }
    }
    overtook
}

#[test]
fn pieces_in_front_of_a_batch_are_found_in_a_planted_order() {
    let given = |copy: u64, bytes: u64| Moment { copy, bytes, done: false };
    let done = |copy: u64| Moment { copy, bytes: 0, done: true };
    let piece = |copy| given(copy, 4 << 20);
    let mut moments = vec![piece(0), done(0)];
    moments.extend([given(1, 64), piece(2), given(3, 64), done(2), piece(4), given(5, 64), given(6, 64)]);
    moments.extend([done(4), given(7, 64), given(8, 64), piece(9), given(10, 64), given(11, 64)]);
    assert_eq!(pieces_in_front(&moments), [2, 1]);
    assert_eq!(pieces_that_overtook(&moments), 2, "the second and the third");
}

/// A model that takes half a piece for an item, and looks at 16 bytes of it.
fn small() -> PathBuf {
    let mut sketch = Sketch::new("small");
    let x = sketch.input("x", &[-1, 1 << 19], "n");
    let (from, to, axis) = (sketch.ints("from", &[0]), sketch.ints("to", &[4]), sketch.ints("axis", &[1]));
    let few = sketch.node("Slice", &[&x, &from, &to, &axis], "few", &[]);
    sketch.node("Relu", &[&few], "y", &[]);
    sketch.output("y", &[-1, 4], "n");
    written("small", sketch)
}

/// A model of 64 MB of weights.
fn large() -> PathBuf {
    const WIDTH: usize = 4096;
    let weights: Vec<f32> = (0..WIDTH * WIDTH).map(|at| at as f32).collect();
    let mut sketch = Sketch::new("large");
    let x = sketch.input("x", &[-1, WIDTH as i64], "n");
    let w = sketch.floats("w", &[WIDTH as u64, WIDTH as u64], &weights);
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
    let standin = Standin::load(&[("ROTA_STANDIN_COPY_US_PER_MB", "5000")]);
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
    assert_eq!(moments.iter().filter(|moment| piece(moment)).count(), 16, "64 MB in pieces of 4");
    let (first, last) = (moments.iter().position(piece).unwrap(), moments.iter().rposition(piece).unwrap());
    let between = moments[first..last].iter().filter(|moment| !moment.done && !piece(moment)).count();
    assert!(between >= REQUESTS, "batches go on while the model loads: {between} copies between its pieces");
    let in_front = pieces_in_front(&moments);
    assert!(in_front.iter().all(|&pieces| pieces <= 1), "{in_front:?}");
    assert!(in_front.contains(&1), "none met a piece: nothing was tried");
    assert_eq!(pieces_that_overtook(&moments), 0, "a piece waits for the inputs of the batch before it");
    assert_eq!(loaded.memory_bytes(), 64 << 20);
}
