//! The cuda device on the stand-in driver: real device code, real driver calls, real kernels compiled for the host.

mod common;

use common::standin::Standin;
use common::{execute, inputs, onnxruntime};
use rota_device::cuda::lower::{Layout, Layouts, Options, Program};
use rota_device::cuda::{CudaEngine, Model, Precision};
use rota_device::engine::{self, CompileOptions, Engine, EngineChoice};
use rota_device::sample::Hints;
use rota_device::{DType, HostTensor, Outcome, Shape, npy};
use rota_graph::examples::{Sketch, noise};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// GPU 0 of the stand-in driver.
fn stand_in(precision: Precision) -> CudaEngine {
    Standin::load(&[]);
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

/// Every precision, and how far from the reference its answers may be.
const PRECISIONS: [(Precision, f32); 3] = [(Precision::Fp32, 1e-4), (Precision::Tf32, 1e-2), (Precision::Fp16, 1e-2)];

/// Runs the model on both, in every precision, for each number of items.
fn compare(file: &Path, hints: &Hints, items: &[u32]) {
    compare_on(file, &requests(file, hints, items));
}

/// Generated inputs of each number of items.
fn requests(file: &Path, hints: &Hints, items: &[u32]) -> Vec<Vec<HostTensor>> {
    let options = CompileOptions { threads: 1, ..CompileOptions::default() };
    let signature = reference().compile(file, &options).unwrap().signature().clone();
    items.iter().map(|&items| inputs(&signature, items, hints, 7)).collect()
}

fn compare_on(file: &Path, runs: &[Vec<HostTensor>]) {
    PRECISIONS.into_iter().for_each(|in_| compare_in(in_, file, runs));
}

fn compare_in(in_: (Precision, f32), file: &Path, runs: &[Vec<HostTensor>]) {
    [Layouts::Nchw, Layouts::Nhwc].into_iter().for_each(|layout| compare_with(in_, layout, file, runs));
}

fn compare_with((precision, tolerance): (Precision, f32), layout: Layouts, file: &Path, runs: &[Vec<HostTensor>]) {
    let options = CompileOptions { threads: 1, ..CompileOptions::default() };
    let mut ours =
        stand_in(precision).with_layout(layout).compile(file, &options).unwrap_or_else(|error| panic!("{error}"));
    let mut theirs = reference().compile(file, &options).unwrap();
    for (run, inputs) in runs.iter().enumerate() {
        let expected = theirs.run(inputs).unwrap();
        let found = ours.run(inputs).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let what = format!("{} in {precision:?}, {layout:?}, run {run}, output {index}", file.display());
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

/// On pieces of a page: of noise the model gives next to nothing, whose range says nothing about an error. In fp32 alone: it ends in a sigmoid of
/// steep slopes, where the last bits of ten move single pixels by 2 to 5 % of the range, also when only the weights are rounded.
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
    compare_in(PRECISIONS[0], &file, &[1, 3, 8].map(pieces));
}

/// In fp32, and in fp16 of four of the twelve lines of noise: on one of the others two letters are about as likely, and their probabilities move
/// by 3 % of the range in fp16, by 2 % in tf32.
#[test]
fn text_recognition_equals_the_reference() {
    let file = models().join("fetched/repository/text-recognition/1/model.onnx");
    if !file.exists() {
        eprintln!("skipped text-recognition: `make models` fetches it");
        return;
    }
    let sizes = [("x.2".to_owned(), 48), ("x.3".to_owned(), 64)].into();
    let runs = requests(&file, &Hints { sizes, ..Hints::default() }, &[1, 3, 8]);
    compare_in(PRECISIONS[0], &file, &runs);
    compare_in(PRECISIONS[2], &file, &runs[..2]);
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

/// Takes its time: 224 by 224 pixels. Of three items in fp32, and of one on the emulated tensor cores, which are slower; `make test-full` has
/// the rest.
#[test]
fn photo_equals_the_reference() {
    let file = models().join("fetched/repository/photo/1/model.onnx");
    if !file.exists() {
        eprintln!("skipped photo: `make models` fetches it");
        return;
    }
    compare_in(PRECISIONS[0], &file, &requests(&file, &Hints::default(), &[1, 3, 8]));
    compare_in(PRECISIONS[2], &file, &requests(&file, &Hints::default(), &[1]));
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
            for layout in [Layouts::Nchw, Layouts::Nhwc] {
                let options = Options { layout, ..Options::default() };
                let arena = model.program(items, &hints, options).unwrap().arena;
                let most = arena.lower_bound + arena.lower_bound / 5;
                assert!(arena.peak <= most, "{}: {} of {}", file.display(), arena.peak, arena.lower_bound);
            }
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

/// Layers of every kind that has kernels for channels last: of 64 channels, or of `odd` ones, which come in no fours.
fn picture_network(channels: u64) -> PathBuf {
    let c = channels;
    let mut s = Sketch::new("pictures");
    let x = s.input("x", &[-1, 3, 20, 20], "n");
    let conv = |s: &mut Sketch, from: &str, name: &str, dims: [u64; 4], attributes: &[(&str, &[i64])]| {
        let count = dims.iter().product::<u64>() as usize;
        let scale = 1.0 / (dims[1] * dims[2] * dims[3]) as f32;
        let values: Vec<f32> = noise(count as u64, count).iter().map(|w| w * scale.sqrt()).collect();
        let w = s.floats(&format!("{name}.w"), &dims, &values);
        let b = s.floats(&format!("{name}.b"), &[dims[0]], &noise(dims[0], dims[0] as usize));
        s.node("Conv", &[from, &w, &b], name, attributes)
    };
    let stem = conv(&mut s, &x, "stem", [c, 3, 3, 3], &[("pads", &[1, 1, 1, 1])]);
    let stem = s.node("Relu", &[&stem], "stem.relu", &[]);
    let wide = conv(&mut s, &stem, "wide", [c, c, 1, 1], &[]);
    let group = ("group", &[c as i64][..]);
    let each = conv(&mut s, &wide, "each", [c, 1, 5, 5], &[group, ("pads", &[2, 2, 2, 2]), ("strides", &[2, 2])]);
    let pooled = s.node("GlobalAveragePool", &[&each], "pooled", &[]);
    let gate = conv(&mut s, &pooled, "gate", [c, c, 1, 1], &[]);
    let gate = s.node("Sigmoid", &[&gate], "gate.sigmoid", &[]);
    let gated = s.node("Mul", &[&each, &gate], "gated", &[]);
    let again = conv(&mut s, &gated, "again", [c, c, 3, 3], &[("pads", &[1, 1, 1, 1])]);
    let sum = s.node("Add", &[&again, &gated], "sum", &[]);
    let both = s.node("Concat", &[&sum, &gated], "both", &[("axis", &[1])]);
    let halves = s.node("MaxPool", &[&both], "halves", &[("kernel_shape", &[2, 2]), ("strides", &[2, 2])]);
    let last = conv(&mut s, &halves, "last", [5, 2 * c, 3, 3], &[]);
    s.output(&last, &[-1, 5, 3, 3], "n");
    model_of(&format!("pictures-{channels}"), s.into_file())
}

#[test]
fn channels_lie_last_wherever_they_can_and_answers_stay_the_same() {
    compare(&picture_network(16), &Hints::default(), &[1, 3]);
    compare(&picture_network(6), &Hints::default(), &[2]);
}

#[test]
fn tensor_cores_get_channels_last_and_f32_gets_what_the_model_has() {
    let model = Model::read(&picture_network(64), &CompileOptions::default()).unwrap();
    let lasts = |precision, layout| {
        let options = Options { precision, layout, ..Options::default() };
        let program = model.program(8, &Hints::default(), options).unwrap();
        program.steps.iter().filter(|step| step.layout == Layout::Nhwc).count()
    };
    assert_eq!(lasts(Precision::Fp16, Layouts::Nchw), 0);
    assert_eq!(lasts(Precision::Fp16, Layouts::Auto), lasts(Precision::Fp16, Layouts::Nhwc));
    assert!(lasts(Precision::Fp16, Layouts::Auto) > 0);
    assert_eq!(lasts(Precision::Fp32, Layouts::Auto), 0);
}

#[test]
fn a_network_of_pictures_is_turned_only_where_it_is_left() {
    let model = Model::read(&picture_network(64), &CompileOptions::default()).unwrap();
    let options = Options { layout: Layouts::Nhwc, ..Options::default() };
    let program = model.program(8, &Hints::default(), options).unwrap();
    let moves = |kernel: &str| kernel.contains("transpose") || kernel.contains("copy");
    let moving = program.steps.iter().filter(|step| moves(step.launch.kernel.name));
    let labels: Vec<&str> = moving.map(|step| step.label.split(' ').next().unwrap_or("")).collect();
    assert_eq!(labels, ["Concat", "Concat", "an"], "what puts tensors together, and the output");
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

/// In fp32 and fp16, lying as the compiler chooses. Takes a few minutes: `make test-full`.
#[test]
#[ignore = "whole pictures on a GPU that is none"]
fn every_demo_model_in_full_equals_the_reference() {
    for (file, hints) in all_models().into_iter().filter(|(file, _)| !file.ends_with("text-detection/1/model.onnx")) {
        for items in [1, 3, 8] {
            let begin = std::time::Instant::now();
            let magika = file.ends_with("magika/1/model.onnx");
            let ranges = if magika { [("bytes".to_owned(), (0.0, 255.0))].into() } else { hints.ranges.clone() };
            let runs = requests(&file, &Hints { ranges, ..hints.clone() }, &[items]);
            compare_with(PRECISIONS[0], Layouts::Auto, &file, &runs);
            compare_with(PRECISIONS[2], Layouts::Auto, &file, &runs);
            println!("{}, {items} items: {:.1} s", file.display(), begin.elapsed().as_secs_f64());
        }
    }
    let file = models().join("fetched/repository/text-detection/1/model.onnx");
    let page = models().join("fetched/inputs/text-detection/page.npy");
    if file.exists() && page.exists() {
        let begin = std::time::Instant::now();
        compare_with(PRECISIONS[0], Layouts::Auto, &file, &[vec![npy::read(&page).unwrap()]]);
        println!("{}, a page: {:.1} s", file.display(), begin.elapsed().as_secs_f64());
    }
}

/// How far narrower numbers are off on what the demo asks; of two models too far for a test, whose answers hang on the last bits there.
#[test]
#[ignore = "says figures for the documents, and asserts nothing that other tests do not"]
fn what_narrower_numbers_cost_on_the_demos_own_inputs() {
    let options = CompileOptions { threads: 1, ..CompileOptions::default() };
    for model in ["photo", "text-detection", "text-orientation", "text-recognition"] {
        let file = models().join(format!("fetched/repository/{model}/1/model.onnx"));
        let Ok(inputs) = std::fs::read_dir(models().join("fetched/inputs").join(model)) else { continue };
        let mut inputs: Vec<PathBuf> = inputs.map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        let mut exact = reference().compile(&file, &options).unwrap();
        for precision in [Precision::Fp16, Precision::Tf32] {
            let mut ours = stand_in(precision).compile(&file, &options).unwrap();
            let off = inputs.iter().map(|input| {
                let given = [npy::read(input).unwrap()];
                let (found, expected) = (ours.run(&given).unwrap(), exact.run(&given).unwrap());
                difference(&found[0], &expected[0], model)
            });
            let off: Vec<String> = off.map(|off| format!("{:.2}", 100.0 * off)).collect();
            println!("{model} in {}, % of the output's range by input: {}", precision.name(), off.join(" "));
        }
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

#[test]
fn a_model_may_be_computed_in_other_numbers_than_its_engine_was_opened_for() {
    let engine = stand_in(Precision::Fp32);
    let load = |precision| {
        let options = CompileOptions { precision, ..CompileOptions::default() };
        let network = engine.compile(&tiny("digits-mlp"), &options).unwrap();
        (network, engine.describe_with(&options))
    };
    let ((mut plain, described), (mut half, described_half)) = (load(None), load(Some(Precision::Fp16)));
    assert!(described.ends_with("fp32") && described_half.ends_with("fp16"), "{described}, {described_half}");
    let given = inputs(plain.signature(), 2, &Hints::default(), 3);
    let (exact, rounded) = (plain.run(&given).unwrap(), half.run(&given).unwrap());
    let apart = difference(&rounded[0], &exact[0], "digits-mlp");
    assert!(apart > 0.0 && apart <= 1e-2, "{apart} of its range");
}
