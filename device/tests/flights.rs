//! Batches of several requests on the stand-in driver: each gets what it would get alone, and the GPU is given no more than it must be. One
//! test, because it counts what the whole process asks of the driver.

mod common;

use common::standin::Standin;
use common::{execute, inputs};
use rota_device::cuda::{CudaEngine, Precision};
use rota_device::engine::{CompileOptions, Engine};
use rota_device::sample::Hints;
use rota_device::{HostTensor, Network, Outcome};
use rota_graph::examples::Sketch;
use std::ffi::CStr;
use std::path::Path;

/// What a batch asks for: launches of graphs, and of single kernels, copies of inputs, those through memory of the driver's, and copies of
/// outputs likewise.
const OF_A_BATCH: [&CStr; 6] =
    [c"graph launch", c"launch", c"upload", c"staged upload", c"download", c"staged download"];

fn compile(engine: &CudaEngine, file: &str) -> Box<dyn Network> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    engine.compile(&file, &CompileOptions { max_batch: Some(8), ..CompileOptions::default() }).unwrap()
}

/// Requests of these many items each, and what each gives alone.
fn requests(network: &mut dyn Network, items: &[u32]) -> (Vec<Vec<HostTensor>>, Vec<Vec<HostTensor>>) {
    let signature = network.signature().clone();
    let each = items.iter().enumerate();
    let all: Vec<_> = each.map(|(seed, &items)| inputs(&signature, items, &Hints::default(), seed as u64)).collect();
    let alone = all.iter().map(|request| network.run(request).unwrap()).collect();
    (all, alone)
}

#[track_caller]
fn assert_as_alone(results: &[(Outcome, Vec<Option<HostTensor>>)], alone: &[Vec<HostTensor>], what: &str) {
    for ((outcome, outputs), alone) in results.iter().zip(alone) {
        assert_eq!(*outcome, Outcome::Done, "{what}");
        for (found, expected) in outputs.iter().zip(alone) {
            let found = found.as_ref().unwrap();
            assert_eq!(found.shape, expected.shape, "{what}");
            let pairs = found.bytes.elements::<f32>().iter().zip(expected.bytes.elements::<f32>());
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= 1e-5), "{what}");
        }
    }
}

#[test]
fn a_batch_is_one_launch_and_each_input_and_output_is_moved_once() {
    let standin = Standin::load(&[]);
    let engine = CudaEngine::open(0, Precision::Fp32).unwrap();
    // A recurrent state has its batch on the second axis: its pieces are as many as it has layers, which is one.
    for (name, tensors) in [("digits-mlp", [1, 1]), ("digits-conv", [1, 1]), ("digits-gru", [2, 2])] {
        let mut network = compile(&engine, &format!("../models/tiny/repository/{name}/1/model.onnx"));
        // In buckets of 1, 4, 8 and 8.
        for items in [&[1][..], &[1, 2], &[2, 1, 3], &[3, 5]] {
            let asked = asked(&mut *network, items, &standin, name);
            // Small pieces: up to two are copied, more are moved together by a kernel.
            let [pieces_in, pieces_out] = tensors.map(|tensors| tensors * items.len() as u64);
            let copies = |pieces: u64| if pieces > 2 { 0 } else { pieces };
            let moves = u64::from(pieces_in > 2) + u64::from(pieces_out > 2);
            assert_eq!(asked, [1, moves, copies(pieces_in), 0, copies(pieces_out), 0], "{name} {items:?}");
        }
    }
    // Of 128 KB each: every one by the copy engines.
    let mut sketch = Sketch::new("large");
    let x = sketch.input("x", &[-1, 1 << 15], "n");
    let y = sketch.node("Relu", &[&x], "y", &[]);
    sketch.output(&y, &[-1, 1 << 15], "n");
    let file = std::env::temp_dir().join(format!("rota-flights-{}.onnx", std::process::id()));
    std::fs::write(&file, sketch.into_file()).unwrap();
    let mut network = compile(&engine, file.to_str().unwrap());
    assert_eq!(asked(&mut *network, &[1, 2, 1, 1], &standin, "large"), [1, 0, 4, 0, 4, 0]);
    std::fs::remove_file(&file).unwrap();
}

/// What a batch asks for whose plans are there; its answers are compared.
#[track_caller]
fn asked(network: &mut dyn Network, items: &[u32], standin: &Standin, name: &str) -> [u64; 6] {
    let (all, alone) = requests(network, items);
    let room = vec![1 << 20; network.signature().outputs.len()];
    // The first time a plan is made for each set of buffers.
    for _ in 0..2 {
        assert_as_alone(&execute(network, &all, &room), &alone, &format!("{name} {items:?}"));
    }
    let mut results = Vec::new();
    let asked = standin.during(OF_A_BATCH, || results = execute(network, &all, &room));
    assert_as_alone(&results, &alone, &format!("{name} {items:?}"));
    asked
}
