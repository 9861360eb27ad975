//! The cuda device on the stand-in driver: real device code, real driver calls, real kernels compiled for the host.

mod common;

use common::{execute, inputs, onnxruntime};
use rota_device::cuda::lower::{Options, Program};
use rota_device::cuda::{CudaEngine, Model, Precision, driver};
use rota_device::engine::{self, CompileOptions, Engine, EngineChoice};
use rota_device::sample::Hints;
use rota_device::{DType, HostTensor, Outcome, Shape, npy};
use rota_graph::examples::{Sketch, noise};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// GPU 0 of the stand-in driver.
fn stand_in(precision: Precision) -> CudaEngine {
    let library = rota_kernels::standin::library().unwrap_or_else(|error| panic!("{error}"));
    driver::open_library(Some(&library)).unwrap();
    CudaEngine::open(0, precision).unwrap()
}

/// What it is compared with.
fn reference() -> Arc<dyn Engine> {
    onnxruntime().unwrap_or_else(|| engine::open(&EngineChoice::Rten).unwrap().engine)
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// Largest difference, relative to the output's range.
fn difference(found: &HostTensor, expected: &HostTensor, what: &str) -> f32 {
    assert_eq!((found.dtype, found.shape), (expected.dtype, expected.shape), "{what}");
    if found.dtype != DType::F32 {
        assert_eq!(found.bytes, expected.bytes, "{what}");
        return 0.0;
    }
    let (found, expected) = (found.bytes.elements::<f32>(), expected.bytes.elements::<f32>());
    let range = expected.iter().fold(0f32, |range, value| range.max(value.abs())).max(1e-20);
    let each = found.iter().zip(expected).map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() });
    each.fold(0.0, f32::max) / range
}

/// Runs the model on both for each number of items.
fn compare(file: &Path, hints: &Hints, items: &[u32]) {
    let options = CompileOptions { threads: 1, ..CompileOptions::default() };
    let signature = reference().compile(file, &options).unwrap().signature().clone();
    compare_on(file, &items.iter().map(|&items| inputs(&signature, items, hints, 7)).collect::<Vec<_>>());
}

fn compare_on(file: &Path, runs: &[Vec<HostTensor>]) {
    compare_in(Precision::Fp32, 1e-4, file, runs);
}

fn compare_in(precision: Precision, tolerance: f32, file: &Path, runs: &[Vec<HostTensor>]) {
    let options = CompileOptions { threads: 1, ..CompileOptions::default() };
    let mut ours = stand_in(precision).compile(file, &options).unwrap_or_else(|error| panic!("{error}"));
    let mut theirs = reference().compile(file, &options).unwrap();
    for (run, inputs) in runs.iter().enumerate() {
        let expected = theirs.run(inputs).unwrap();
        let found = ours.run(inputs).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let what = format!("{}, run {run}, output {index}", file.display());
            let worst = difference(found, expected, &what);
            assert!(worst <= tolerance, "{what}: {worst} of its range");
        }
    }
}

fn tiny(name: &str) -> PathBuf {
    models().join("tiny/repository").join(name).join("1/model.onnx")
}

#[test]
fn a_multilayer_perceptron_equals_the_reference() {
    compare(&tiny("digits-mlp"), &Hints::default(), &[1, 3, 8]);
}

#[test]
fn a_small_convolutional_network_equals_the_reference() {
    compare(&tiny("digits-conv"), &Hints::default(), &[1, 3, 8]);
}

/// Sizes of the demo's models, small enough for a stand-in.
fn fetched(name: &str, sizes: &[(&str, u32)], items: &[u32]) {
    let file = models().join("fetched/repository").join(name).join("1/model.onnx");
    if !file.exists() {
        eprintln!("skipped {name}: `make models` fetches it");
        return;
    }
    let sizes = sizes.iter().map(|&(name, size)| (name.to_owned(), size)).collect();
    compare(&file, &Hints { sizes, ..Hints::default() }, items);
}

#[test]
fn text_orientation_equals_the_reference() {
    fetched("text-orientation", &[("x.2", 48), ("x.3", 64)], &[1, 3, 8]);
}

/// On pieces of a page: of noise the model gives next to nothing, whose range says nothing about an error.
#[test]
fn text_detection_equals_the_reference() {
    let file = models().join("fetched/repository/text-detection/1/model.onnx");
    let page = models().join("fetched/inputs/text-detection/page.npy");
    if !file.exists() || !page.exists() {
        eprintln!("skipped text-detection: `make models` fetches it");
        return;
    }
    let page = npy::read(&page).unwrap();
    let pieces = |count: usize| {
        let (height, width) = (page.shape.dims()[2] as usize, page.shape.dims()[3] as usize);
        let mut batch = HostTensor::zeroed(DType::F32, Shape::new(&[count as u32, 3, 64, 96]).unwrap()).unwrap();
        for (row, to) in batch.bytes.elements_mut::<f32>().chunks_mut(96).enumerate() {
            let (piece, channel, line) = (row / (3 * 64), row / 64 % 3, row % 64);
            let begin = (channel * height + line + 16 * piece) * width;
            to.copy_from_slice(&page.bytes.elements::<f32>()[begin..begin + 96]);
        }
        vec![batch]
    };
    compare_on(&file, &[1, 3, 8].map(pieces));
}

#[test]
fn text_recognition_equals_the_reference() {
    fetched("text-recognition", &[("x.2", 48), ("x.3", 64)], &[1, 3, 8]);
}

#[test]
fn file_types_equal_the_reference() {
    // Bytes: of zeros and ones alone the model's normalisation has next to no variance to divide by.
    let file = models().join("fetched/repository/magika/1/model.onnx");
    if file.exists() {
        let ranges = [("bytes".to_owned(), (0.0, 255.0))].into();
        compare(&file, &Hints { ranges, ..Hints::default() }, &[1, 3, 8]);
    }
}

#[test]
fn speech_equals_the_reference() {
    fetched("silero-vad", &[("sequence", 576)], &[1, 3, 8]);
}

#[test]
fn a_small_recurrent_network_equals_the_reference() {
    compare(&tiny("digits-gru"), &Hints::default(), &[1, 3, 8]);
}

/// Takes its time: 224 by 224 pixels.
#[test]
fn photo_equals_the_reference() {
    fetched("photo", &[], &[1, 3, 8]);
}

#[test]
fn tensor_cores_answer_within_their_precision() {
    for precision in [Precision::Tf32, Precision::Fp16] {
        for name in ["digits-mlp", "digits-conv", "digits-gru"] {
            let options = CompileOptions { threads: 1, ..CompileOptions::default() };
            let signature = reference().compile(&tiny(name), &options).unwrap().signature().clone();
            let runs = [1, 3, 8].map(|items| inputs(&signature, items, &Hints::default(), 7));
            compare_in(precision, 1e-2, &tiny(name), &runs);
        }
    }
}

#[test]
fn real_models_in_fp16_answer_within_a_hundredth() {
    let file = models().join("fetched/repository/text-orientation/1/model.onnx");
    if !file.exists() {
        eprintln!("skipped text-orientation: `make models` fetches it");
        return;
    }
    let options = CompileOptions { threads: 1, ..CompileOptions::default() };
    let signature = reference().compile(&file, &options).unwrap().signature().clone();
    let hints = Hints { sizes: [("x.2".to_owned(), 48), ("x.3".to_owned(), 64)].into(), ..Hints::default() };
    for precision in [Precision::Tf32, Precision::Fp16] {
        compare_in(precision, 1e-2, &file, &[1, 3].map(|items| inputs(&signature, items, &hints, 7)));
    }
}

/// The demo's models and the small ones, with sizes for those that leave them open.
fn all_models() -> Vec<(PathBuf, Hints)> {
    let sizes = |sizes: &[(&str, u32)]| Hints {
        sizes: sizes.iter().map(|&(name, size)| (name.to_owned(), size)).collect(),
        ranges: [("sr".to_owned(), (16000.0, 16000.0))].into(),
    };
    let fetched = |name: &str| models().join("fetched/repository").join(name).join("1/model.onnx");
    let mut all: Vec<(PathBuf, Hints)> =
        ["digits-mlp", "digits-conv", "digits-gru"].map(|name| (tiny(name), sizes(&[]))).into();
    for (name, open) in [
        ("photo", &[][..]),
        ("magika", &[]),
        ("silero-vad", &[("sequence", 576)]),
        ("text-detection", &[("x.2", 480), ("x.3", 640)]),
        ("text-orientation", &[("x.2", 48), ("x.3", 192)]),
        ("text-recognition", &[("x.2", 48), ("x.3", 320)]),
    ] {
        all.push((fetched(name), sizes(open)));
    }
    all.retain(|(file, _)| file.exists());
    all
}

#[test]
fn activations_take_at_most_a_fifth_more_than_they_must() {
    for (file, hints) in all_models() {
        let model = Model::read(&file, &CompileOptions::default()).unwrap();
        for items in [1, 3, 8, 32] {
            let program = model.program(items, &hints, Options::default()).unwrap();
            let arena = &program.arena;
            let most = arena.lower_bound + arena.lower_bound / 5;
            assert!(arena.peak <= most, "{}: {} of {}", file.display(), arena.peak, arena.lower_bound);
        }
    }
}

#[test]
fn fusion_saves_launches_and_bytes() {
    for (file, hints) in all_models() {
        let model = Model::read(&file, &CompileOptions::default()).unwrap();
        let program = |fuse| model.program(8, &hints, Options { fuse, ..Options::default() }).unwrap();
        let (fused, plain) = (program(true), program(false));
        let bytes = |program: &Program| program.cost().bytes_read + program.cost().bytes_written;
        assert!(fused.steps.len() <= plain.steps.len() && bytes(&fused) <= bytes(&plain), "{}", file.display());
        // A recurrent layer with a product behind it has nothing to fuse.
        let gains = fused.steps.len() < plain.steps.len() && bytes(&fused) < bytes(&plain);
        assert!(gains || file.ends_with("digits-gru/1/model.onnx"), "{}", file.display());
    }
}

/// Writes a model into a folder of its own.
fn model_of(name: &str, file: Vec<u8>) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("rota-cuda-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("model.onnx");
    std::fs::write(&path, file).unwrap();
    path
}

#[test]
fn an_index_past_the_end_fails_its_request_and_no_other() {
    let mut sketch = Sketch::new("embedding");
    let ids = sketch.typed_input("ids", 7, &[-1, 3], "n");
    let table = sketch.floats("table", &[10, 4], &noise(1, 40));
    sketch.node("Gather", &[&table, &ids], "y", &[]);
    sketch.output("y", &[-1, 3, 4], "n");
    let file = model_of("embedding", sketch.into_file());
    let options = CompileOptions { max_batch: Some(4), ..CompileOptions::default() };
    let mut network = stand_in(Precision::Fp32).compile(&file, &options).unwrap();
    let request = |ids: [i64; 3]| vec![HostTensor::from_elements(&[1, 3], &ids).unwrap()];
    let requests = [request([0, 5, 9]), request([1, 10, 2]), request([-1, 3, 3])];
    // More than once: what a bad batch leaves in the buffers must not fail the next.
    for _ in 0..4 {
        let results = execute(&mut *network, &requests, &[4096]);
        assert_eq!((&results[0].0, &results[2].0), (&Outcome::Done, &Outcome::Done));
        assert!(matches!(&results[1].0, Outcome::Failed(text) if text.contains("past the end")), "{:?}", results[1].0);
        let row = |at: usize| noise(1, 40)[4 * at..4 * at + 4].to_vec();
        let found = results[2].1[0].as_ref().unwrap();
        assert_eq!(found.bytes.elements::<f32>(), [row(9), row(3), row(3)].concat());
        let sound = execute(&mut *network, &[request([4, 4, 4])], &[4096]);
        assert_eq!(sound[0].0, Outcome::Done);
    }
}

#[test]
fn unloading_gives_the_memory_back() {
    let engine = stand_in(Precision::Fp32);
    let run = || {
        let mut network = engine.compile(&tiny("digits-mlp"), &CompileOptions::default()).unwrap();
        let inputs = inputs(network.signature(), 1, &Hints::default(), 1);
        network.run(&inputs).unwrap();
        engine.memory().unwrap().0
    };
    // The arena stays for whoever comes next, so the second time takes what the first gave back.
    assert_eq!(run(), run());
}

/// Takes a minute or two: `make test-full`.
#[test]
#[ignore = "whole pictures on a GPU that is none"]
fn every_demo_model_in_full_equals_the_reference() {
    for (file, hints) in all_models().into_iter().filter(|(file, _)| !file.ends_with("text-detection/1/model.onnx")) {
        for items in [1, 3, 8] {
            let begin = std::time::Instant::now();
            let magika = file.ends_with("magika/1/model.onnx");
            let ranges = if magika { [("bytes".to_owned(), (0.0, 255.0))].into() } else { hints.ranges.clone() };
            compare(&file, &Hints { ranges, ..hints.clone() }, &[items]);
            println!("{}, {items} items: {:.1} s", file.display(), begin.elapsed().as_secs_f64());
        }
    }
    let file = models().join("fetched/repository/text-detection/1/model.onnx");
    let page = models().join("fetched/inputs/text-detection/page.npy");
    if file.exists() && page.exists() {
        let begin = std::time::Instant::now();
        compare_on(&file, &[vec![npy::read(&page).unwrap()]]);
        println!("{}, a page: {:.1} s", file.display(), begin.elapsed().as_secs_f64());
    }
}

#[test]
fn attention_and_normalisation_written_as_many_nodes_are_a_launch_each() {
    const WIDTH: usize = 32;
    let mut s = Sketch::new("block");
    let x = s.input("x", &[-1, 6, WIDTH as i64], "n");
    let mean = s.node("ReduceMean", &[&x], "mean", &[("axes", &[-1]), ("keepdims", &[1])]);
    let centred = s.node("Sub", &[&x, &mean], "centred", &[]);
    let two = s.floats("two", &[], &[2.0]);
    let squares = s.node("Pow", &[&centred, &two], "squares", &[]);
    let variance = s.node("ReduceMean", &[&squares], "variance", &[("axes", &[-1]), ("keepdims", &[1])]);
    let epsilon = s.floats("epsilon", &[], &[1e-5]);
    let sum = s.node("Add", &[&variance, &epsilon], "sum", &[]);
    let spread = s.node("Sqrt", &[&sum], "spread", &[]);
    let normal = s.node("Div", &[&centred, &spread], "normal", &[]);
    let gamma = s.floats("gamma", &[WIDTH as u64], &noise(1, WIDTH));
    let scaled = s.node("Mul", &[&normal, &gamma], "scaled", &[]);
    let beta = s.floats("beta", &[WIDTH as u64], &noise(2, WIDTH));
    let normal = s.node("Add", &[&scaled, &beta], "shifted", &[]);
    let mut project = |seed: u64, name: &str| {
        let w = s.floats(&format!("w{name}"), &[WIDTH as u64, WIDTH as u64], &noise(seed, WIDTH * WIDTH));
        s.node("MatMul", &[&normal, &w], name, &[])
    };
    let (q, k, v) = (project(3, "q"), project(4, "k"), project(5, "v"));
    let turned = s.node("Transpose", &[&k], "turned", &[("perm", &[0, 2, 1])]);
    let scores = s.node("MatMul", &[&q, &turned], "scores", &[]);
    let factor = s.floats("factor", &[], &[0.05]);
    let scores = s.node("Mul", &[&scores, &factor], "scores2", &[]);
    let weights = s.node("Softmax", &[&scores], "weights", &[("axis", &[2])]);
    s.node("MatMul", &[&weights, &v], "y", &[]);
    s.output("y", &[-1, 6, WIDTH as i64], "n");
    let file = model_of("block", s.into_file());
    compare(&file, &Hints::default(), &[1, 3, 8]);
    let model = Model::read(&file, &CompileOptions::default()).unwrap();
    let program = model.program(2, &Hints::default(), Options::default()).unwrap();
    let kernels: Vec<&str> = program.steps.iter().map(|step| step.launch.kernel.name).collect();
    assert_eq!(kernels.len(), 5, "{kernels:?}");
    assert_eq!((kernels[0], kernels[4]), ("rota_normalize_f32", "rota_attention_f32"), "{kernels:?}");
}
