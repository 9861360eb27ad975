//! What a GPU does at the same time: batches that follow one another, and a model that is loaded beside them. On the stand-in driver with the
//! times of an H100 at the least and a host that takes no time, so every figure here is virtual and the same in each run.

mod common;

use common::timed::{Done, Engine, Scratch, has_settings, open, written};
use rota_device::cuda::lower::Options;
use rota_device::cuda::roofline::GPUS;
use rota_device::cuda::{CudaEngine, Model, Precision, standin};
use rota_device::engine::{CompileOptions, Engine as _};
use rota_device::sample::{self, Hints};
use rota_device::{Batch, BatchId, HostTensor, Network, NetworkId, Outcome};
use rota_graph::examples::{Sketch, noise};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Two requests of so many items each are a batch.
const ITEMS: u32 = 4;
const ROOM: usize = ITEMS as usize * 8 * 8 * 8 * 4;

/// Convolutions enough that a batch is longer on its way through them than on the bus.
fn pictures() -> Vec<u8> {
    let mut sketch = Sketch::new("pictures");
    let mut x = sketch.input("pictures", &[-1, 3, 16, 16], "n");
    for (layer, channels) in [3, 8, 8, 8, 8].into_iter().enumerate() {
        let w =
            sketch.floats(&format!("w{layer}"), &[8, channels, 3, 3], &noise(layer as u64, 8 * 9 * channels as usize));
        let stride = if layer == 4 { 2 } else { 1 };
        let attributes: [(&str, &[i64]); 3] =
            [("kernel_shape", &[3, 3]), ("pads", &[1, 1, 1, 1]), ("strides", &[stride, stride])];
        x = sketch.node("Conv", &[&x, &w], &format!("y{layer}"), &attributes);
    }
    sketch.output(&x, &[-1, 8, 8, 8], "n");
    sketch.into_file()
}

/// 64 MB of weights.
fn heavy() -> Vec<u8> {
    let mut sketch = Sketch::new("heavy");
    let mut x = sketch.input("x", &[-1, 2048], "n");
    for layer in 0..4 {
        let w = sketch.floats(&format!("w{layer}"), &[2048, 2048], &noise(layer, 2048 * 2048));
        x = sketch.node("MatMul", &[&x, &w], &format!("y{layer}"), &[]);
    }
    sketch.output(&x, &[-1, 2048], "n");
    sketch.into_file()
}

/// Files of one test: a model, what its kernels take on an H100 at the least, and the trace.
struct Files {
    model: Scratch,
    times: Scratch,
    trace: Scratch,
}

impl Files {
    fn new(test: &str) -> Files {
        let model = Scratch::write(&format!("{test}.onnx"), &pictures());
        let read = Model::read(model.path(), &options()).unwrap();
        let lines = |items: u32| -> String {
            let program = read.program(items, &Hints::default(), Options::default()).unwrap();
            program.steps.iter().map(|step| standin::time_line(&step.launch, GPUS[0].time(step))).collect()
        };
        let times = Scratch::write(&format!("{test}.times"), [1, ITEMS, 2 * ITEMS].map(lines).concat().as_bytes());
        Files { model, times, trace: Scratch::write(&format!("{test}.trace"), b"") }
    }

    fn settings(&self) -> [(&str, &str); 4] {
        [
            ("ROTA_STANDIN_GPU", "h100"),
            ("ROTA_STANDIN_HOST", "none"),
            ("ROTA_STANDIN_TIMES", self.times.text()),
            ("ROTA_STANDIN_TRACE", self.trace.text()),
        ]
    }
}

fn options() -> CompileOptions {
    CompileOptions { max_batch: Some(2 * ITEMS), ..CompileOptions::default() }
}

/// Batches of two requests each, which go round, and what each request gives alone.
struct Work {
    #[expect(clippy::vec_box, reason = "a device takes and gives them boxed")]
    batches: Vec<Box<Batch>>,
    alone: Vec<[Vec<HostTensor>; 2]>,
}

impl Work {
    fn new(network: &mut dyn Network) -> Work {
        let signature = network.signature().clone();
        let mut work = Work { batches: Vec::new(), alone: Vec::new() };
        for number in 0..BATCHES {
            let seed = |request: u64| 2 * number + request;
            let requests = [0, 1].map(|request| common::inputs(&signature, ITEMS, &Hints::default(), seed(request)));
            let mut batch = sample::lay_out(NetworkId(0), &signature, &requests, &[ROOM]).unwrap();
            batch.id = BatchId(number);
            work.batches.push(batch);
            work.alone.push(requests.map(|request| network.run(&request).unwrap()));
        }
        work
    }

    fn begin(&mut self, network: &mut dyn Network, number: usize) {
        let batch = &mut self.batches[number % BATCHES as usize];
        network.stage(batch);
        assert!(!network.begin(batch, &mut |_, _| {}), "batch {number} went the slow way");
    }

    /// Waits for a batch, and looks at its answers.
    fn end(&mut self, network: &mut dyn Network, number: usize) {
        let which = number % BATCHES as usize;
        let batch = &mut self.batches[which];
        while !network.ended(batch, &mut |_, _| {}) {
            std::thread::yield_now();
        }
        for (request, alone) in self.alone[which].iter().enumerate() {
            assert_eq!(batch.requests[request].outcome, Outcome::Done, "batch {number}");
            let outputs = sample::outputs(batch, network.signature(), request);
            let [found, alone] = [outputs[0].as_ref().unwrap(), &alone[0]].map(|tensor| tensor.bytes.elements::<f32>());
            assert!(found.iter().zip(alone).all(|(a, b)| (a - b).abs() <= 1e-5), "batch {number}");
        }
    }

    /// Begins a batch whenever the one before the last has ended, while `goes_on` for as many as there were: so one executes and one is
    /// behind it. Returns how many went through.
    fn run(&mut self, network: &mut dyn Network, goes_on: impl Fn(usize) -> bool) -> usize {
        let mut begun = 0;
        for ended in 0.. {
            while begun < ended + 2 && (begun < 2 || goes_on(begun)) {
                self.begin(network, begun);
                begun += 1;
            }
            if ended == begun {
                break;
            }
            self.end(network, ended);
        }
        begun
    }
}

/// Different ones, of which two are on their way at a time.
const BATCHES: u64 = 4;

/// Whether it brings a request of the batches above.
fn is_input(done: &Done) -> bool {
    done.engine == Engine::CopiesIn && done.bytes == u64::from(ITEMS) * 3 * 16 * 16 * 4
}

/// What the GPU did for a batch.
#[derive(Debug)]
struct Seen {
    copies_in: Vec<Done>,
    kernels: Vec<Done>,
    copies_out: Vec<Done>,
}

impl Seen {
    /// Of the batches that this part of the trace begins with.
    fn all(part: &[Done]) -> Vec<Seen> {
        let copies_in: Vec<Done> = part.iter().filter(|done| is_input(done)).cloned().collect();
        let of = |engine: Engine| part.iter().filter(move |done| done.engine == engine && done.name != "fill").cloned();
        let (kernels, copies_out): (Vec<Done>, Vec<Done>) =
            (of(Engine::Kernels).collect(), of(Engine::CopiesOut).collect());
        let launches: Vec<&[Done]> = kernels.chunk_by(|a, b| a.call == b.call).collect();
        assert_eq!((copies_in.len(), copies_out.len()), (2 * launches.len(), 2 * launches.len()));
        let copies = copies_in.chunks(2).zip(copies_out.chunks(2));
        let seen = |((copies_in, copies_out), kernels): ((&[Done], &[Done]), &[Done])| Seen {
            copies_in: copies_in.to_vec(),
            kernels: kernels.to_vec(),
            copies_out: copies_out.to_vec(),
        };
        copies.zip(launches).map(seen).collect()
    }

    fn executes(&self) -> Range<Duration> {
        self.kernels[0].begin..self.kernels[self.kernels.len() - 1].end
    }

    /// From when the first copy was asked for to the end of the last.
    fn took(&self) -> Duration {
        self.copies_out[1].end - self.copies_in[0].asked
    }
}

/// A network that has made its plans, and work for it.
fn served(files: &Files, engine: &CudaEngine) -> (Box<dyn Network>, Work) {
    let mut network = engine.compile(files.model.path(), &options()).unwrap();
    let mut work = Work::new(&mut *network);
    work.run(&mut *network, |begun| begun < 4);
    (network, work)
}

#[test]
fn copies_of_other_batches_lie_under_the_kernels_and_those_follow_without_a_gap() {
    const TEST: &str = "copies_of_other_batches_lie_under_the_kernels_and_those_follow_without_a_gap";
    let files = Files::new("overlap");
    if !has_settings(TEST, &files.settings()) {
        return;
    }
    open();
    let engine = CudaEngine::open(0, Precision::Fp32).unwrap();
    let (mut network, mut work) = served(&files, &engine);
    let before = written().len();
    let count = work.run(&mut *network, |begun| begun < 8);
    let batches = Seen::all(&written()[before..]);
    assert_eq!(batches.len(), count);
    let kernels_take = |batch: &Seen| batch.kernels.iter().map(|kernel| kernel.end - kernel.begin).sum::<Duration>();
    for batch in &batches {
        let executes = batch.executes();
        assert_eq!(executes.end - executes.start, kernels_take(batch), "something came between its kernels");
        assert!(batch.copies_in[1].end <= executes.start && executes.end <= batch.copies_out[0].begin);
    }
    for (batch, next) in batches.iter().zip(&batches[1..]) {
        let (executes, next_executes) = (batch.executes(), next.executes());
        // The first two are asked for at once, so the copies of both come before any kernel is through.
        assert!(next.copies_in[1].end <= executes.end, "{batch:?} {next:?}");
        assert_eq!(next_executes.start, executes.end);
        let out = [batch.copies_out[0].begin, batch.copies_out[1].end];
        assert!(next_executes.contains(&out[0]) && out[1] <= next_executes.end, "{batch:?} {next:?}");
    }
    for (batch, after_next) in batches.iter().zip(&batches[2..]) {
        // Asked for when the batch is at its end, while the next one executes.
        assert_eq!(after_next.copies_in[0].asked, batch.copies_out[1].end);
        assert_eq!(after_next.copies_in[0].begin, batch.copies_out[1].end);
    }
}

#[test]
fn no_batch_takes_longer_than_a_piece_of_weights_while_a_large_model_is_loaded() {
    const TEST: &str = "no_batch_takes_longer_than_a_piece_of_weights_while_a_large_model_is_loaded";
    let files = Files::new("spike");
    let large = Scratch::write("spike-large.onnx", &heavy());
    if !has_settings(TEST, &files.settings()) {
        return;
    }
    open();
    let engine = CudaEngine::open(0, Precision::Fp32).unwrap();
    let (mut network, mut work) = served(&files, &engine);
    let before = written().len();
    work.run(&mut *network, |begun| begun < 6);
    let alone = written().len();
    let loaded = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut network = engine.compile(large.path(), &options()).unwrap();
            network.warm(&sample::class_of(network.signature(), &Hints::default()).unwrap()).unwrap();
            loaded.store(true, Ordering::Release);
        });
        work.run(&mut *network, |_| !loaded.load(Ordering::Acquire));
    });
    let all = written();
    let took = |part: &[Done]| Seen::all(part).iter().map(Seen::took).max().unwrap();
    let (alone, loading) = (&all[before..alone], &all[alone..]);
    let pieces: Vec<&Done> = loading.iter().filter(|done| done.engine == Engine::CopiesIn && !is_input(done)).collect();
    assert_eq!(pieces.iter().map(|piece| piece.bytes).sum::<u64>() >> 20, 64);
    let piece = pieces.iter().map(|piece| piece.end - piece.begin).max().unwrap();
    let overlapped = Seen::all(loading);
    let meets = |batch: &&Seen| {
        pieces.iter().any(|piece| piece.begin < batch.copies_out[1].end && batch.copies_in[0].asked < piece.end)
    };
    assert!(overlapped.iter().filter(meets).count() > 16, "of {} batches few met an upload", overlapped.len());
    let (most, limit) = (took(loading), took(alone).mul_f64(1.1) + piece);
    assert!(most <= limit, "a batch took {most:?}, alone {:?}, and a piece {piece:?}", took(alone));
}
