//! Heads of a trunk on the stand-in driver. One test, because it counts what the whole process asks of the driver.

use crate::batched::Batched;
use crate::batched::stack::Stack;
use crate::cuda::{CudaEngine, Precision, driver, standin};
use crate::engine::{CompileOptions, Engine, Loaded};
use crate::parts::{Columns, Feed, Part};
use crate::{Batch, HostTensor, Network, NetworkId, Outcome, Signature, check, sample};
use rota_graph::examples::{Sketch, noise};
use rota_graph::{Bytes, Graph, Limits};
use std::ffi::{CStr, c_char};

const WIDTH: usize = 32;
/// Classes of each head.
const CLASSES: [usize; 5] = [10, 3, 7, 10, 2];

fn trunk() -> Vec<u8> {
    let mut sketch = Sketch::new("trunk");
    let x = sketch.input("x", &[-1, 16], "n");
    let weights = sketch.floats("w", &[16, WIDTH as u64], &noise(1, 16 * WIDTH));
    let product = sketch.node("MatMul", &[&x, &weights], "product", &[]);
    let y = sketch.node("Relu", &[&product], "y", &[]);
    sketch.output(&y, &[-1, WIDTH as i64], "n");
    sketch.into_file()
}

/// Two dense layers and a softmax.
fn head(number: usize) -> Vec<u8> {
    let mut sketch = Sketch::new("head");
    let mut x = sketch.input("features", &[-1, WIDTH as i64], "n");
    for (layer, [rows, columns]) in [[WIDTH, 12], [12, CLASSES[number]]].into_iter().enumerate() {
        let seed = (10 * number + layer + 2) as u64;
        let name = |name: &str| format!("{name}{layer}");
        let weights = sketch.floats(&name("w"), &[rows as u64, columns as u64], &noise(seed, rows * columns));
        let bias = sketch.floats(&name("b"), &[columns as u64], &noise(seed + 100, columns));
        let product = sketch.node("MatMul", &[&x, &weights], &name("product"), &[]);
        let sum = sketch.node("Add", &[&product, &bias], &name("sum"), &[]);
        x = sketch.node(["Relu", "Softmax"][layer], &[&sum], &name("y"), &[]);
    }
    sketch.output(&x, &[-1, CLASSES[number] as i64], "n");
    sketch.into_file()
}

fn load(engine: &CudaEngine, model: &[u8], stack_members: u32) -> Loaded {
    let file = std::env::temp_dir().join(format!("rota-heads-{}.onnx", std::process::id()));
    std::fs::write(&file, model).unwrap();
    let loaded = engine.load(&file, &CompileOptions { stack_members, ..CompileOptions::default() }).unwrap();
    std::fs::remove_file(&file).unwrap();
    loaded
}

fn network(engine: &CudaEngine, stacked: bool) -> Batched<Box<dyn crate::batched::Runner>> {
    let port = || vec![Feed::Port { part: 0, port: 0 }];
    let trunk = load(engine, &trunk(), 0);
    let mut signature = Signature { inputs: trunk.signature.inputs, outputs: Vec::new() };
    let mut parts = vec![Part::new(trunk.runner, vec![Feed::Input(0)], vec![0], 0..CLASSES.len())];
    let files: Vec<Vec<u8>> = (0..CLASSES.len()).map(head).collect();
    for (number, file) in files.iter().enumerate() {
        let own = load(engine, file, 0);
        signature.outputs.extend(own.signature.outputs);
        parts.push(Part::new(own.runner, port(), Vec::new(), number..number + 1));
    }
    signature.inputs.iter_mut().chain(&mut signature.outputs).for_each(|tensor| tensor.batch_axis = Some(0));
    let mut network = Batched::of_parts(signature, 0, parts);
    if stacked {
        let read = |file: &Vec<u8>| Graph::read(Bytes::from(file.clone()), &Limits::default()).unwrap();
        let graphs: Vec<Graph> = files.iter().map(read).collect();
        let made = rota_graph::stack(&graphs.iter().collect::<Vec<_>>()).unwrap();
        let columns = made.outputs.iter().map(|output| Columns {
            stride: output.stride as usize,
            widths: output.widths.iter().map(|&width| width as usize).collect(),
        });
        let loaded = load(engine, &made.model, CLASSES.len() as u32);
        let part = Part::new(loaded.runner, port(), Vec::new(), 0..0);
        network.stacks.push(Stack::always((1..=CLASSES.len()).collect(), part, columns.collect()));
    }
    network.reserve(16);
    network
}

/// One request for each set of heads, of so many items.
fn batch(signature: &Signature, requests: &[(&[usize], u32)]) -> Box<Batch> {
    let mut all: Option<Box<Batch>> = None;
    for (seed, &(heads, items)) in requests.iter().enumerate() {
        let values = HostTensor::from_elements(&[items, 16], &noise(1000 + seed as u64, 16 * items as usize)).unwrap();
        let room: Vec<Option<usize>> =
            (0..CLASSES.len()).map(|head| heads.contains(&head).then_some(1 << 12)).collect();
        let one = sample::lay_out_some(NetworkId(0), signature, &[vec![values]], &room).unwrap();
        match &mut all {
            None => all = Some(one),
            Some(all) => {
                all.requests.extend(one.requests);
                all.spans.extend(one.spans);
            }
        }
    }
    all.unwrap()
}

/// Graphs launched, kernels launched alone, and copies: in, out, and inside the GPU.
fn counts() -> [u64; 5] {
    // SAFETY: the library is the stand-in, which runs no initialiser again and declares the function so.
    unsafe {
        let library = libloading::Library::new(standin::library().unwrap()).unwrap();
        let count = library.get::<unsafe extern "C" fn(*const c_char) -> u64>(b"rota_standin_count\0").unwrap();
        let all: [&CStr; 5] = [c"graph launch", c"launch", c"upload", c"download", c"copy"];
        all.map(|what| count(what.as_ptr()))
    }
}

#[test]
fn the_heads_of_a_batch_are_one_launch_and_give_what_each_gives_alone() {
    driver::open_library(Some(&standin::library().unwrap())).unwrap();
    let engine = CudaEngine::open(0, Precision::Fp32).unwrap();
    let (mut stacked, mut apart) = (network(&engine, true), network(&engine, false));
    let signature = stacked.signature().clone();
    let all: &[usize] = &[0, 1, 2, 3, 4];
    let batches: [&[(&[usize], u32)]; 4] = [
        &[(&[0], 1), (&[1], 2), (&[2], 1), (&[3], 1), (&[4], 3)],
        &[(&[3], 1), (&[0, 4], 2), (&[3], 2), (&[1, 2], 1)],
        &[(all, 2), (all, 1), (&[2], 1)],
        &[(&[4], 1), (&[1], 1), (&[4], 1)],
    ];
    for (number, requests) in batches.into_iter().enumerate() {
        // Three times: the first two make the plans of both sets of buffers.
        for round in 0..3 {
            let (mut ours, mut theirs) = (batch(&signature, requests), batch(&signature, requests));
            let before = counts();
            let mut told = Vec::new();
            stacked.execute_telling(&mut ours, &mut |_, request| told.push(request));
            let after = counts();
            apart.execute(&mut theirs);
            assert!(told.is_empty(), "all are told when the batch ends");
            for request in 0..requests.len() {
                assert_eq!(ours.requests[request].outcome, Outcome::Done, "batch {number}");
                let found = sample::outputs(&ours, &signature, request);
                let expected = sample::outputs(&theirs, &signature, request);
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.is_some(), expected.is_some(), "batch {number}, request {request}");
                    let (Some(found), Some(expected)) = (found, expected) else { continue };
                    let difference = check::apart(found, expected);
                    assert!(difference <= 1e-6, "batch {number}, request {request}: {difference}");
                }
            }
            if round == 2 {
                let asked: [u64; 5] = std::array::from_fn(|at| after[at] - before[at]);
                // The trunk and the heads; a kernel for the inputs and one for the outputs; one copy from the trunk to the heads.
                assert_eq!(asked, [2, 2, 0, 0, 1], "batch {number}");
            }
        }
    }
}
