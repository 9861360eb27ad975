//! Batches of several requests on the stand-in driver: each gets what it would get alone, and the GPU is given no more than it must be. One
//! test, because it counts what the whole process asks of the driver.

mod common;

use common::standin::Standin;
use common::{execute, inputs};
use rota_device::cuda::{CudaEngine, Precision};
use rota_device::engine::{CompileOptions, Engine};
use rota_device::sample::Hints;
use rota_device::{HostTensor, Network, Outcome};
use std::ffi::CStr;
use std::path::Path;

/// What a batch asks for: launches, copies of inputs, those through memory of the driver's, and copies of outputs likewise.
const OF_A_BATCH: [&CStr; 5] = [c"graph launch", c"upload", c"staged upload", c"download", c"staged download"];

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
fn a_batch_is_one_launch_and_one_copy_of_each_input_and_output() {
    let standin = Standin::load(&[]);
    let engine = CudaEngine::open(0, Precision::Fp32).unwrap();
    // A recurrent state has its batch on the second axis: its copies are as many as it has layers, which is one.
    for (name, tensors) in [("digits-mlp", [1, 1]), ("digits-conv", [1, 1]), ("digits-gru", [2, 2])] {
        let mut network = compile(&engine, &format!("../models/tiny/repository/{name}/1/model.onnx"));
        // In buckets of 1, 4, 8 and 8.
        for items in [&[1][..], &[1, 2], &[2, 1, 3], &[3, 5]] {
            let (all, alone) = requests(&mut *network, items);
            let room = vec![4096; network.signature().outputs.len()];
            // The first time a plan is made for each set of buffers.
            for _ in 0..2 {
                assert_as_alone(&execute(&mut *network, &all, &room), &alone, &format!("{name} {items:?}"));
            }
            let mut results = Vec::new();
            let asked = standin.during(OF_A_BATCH, || results = execute(&mut *network, &all, &room));
            assert_as_alone(&results, &alone, &format!("{name} {items:?}"));
            let requests = items.len() as u64;
            assert_eq!(asked, [1, tensors[0] * requests, 0, tensors[1] * requests, 0], "{name} {items:?}");
        }
    }
}
