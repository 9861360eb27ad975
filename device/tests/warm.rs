//! Plans that are made before the first batch, and again before a lost GPU is back. On the stand-in driver, which counts what it is asked for.

mod common;

use common::standin::Standin;
use common::{execute, inputs};
use rota_device::cuda::{CudaEngine, Precision};
use rota_device::engine::{CompileOptions, Engine};
use rota_device::parts::{self, Feed, PartSpec};
use rota_device::sample::{self, Hints};
use rota_device::{Batch, BatchId, CpuDevice, CpuOptions, Device, HostTensor, Network, NetworkId, Outcome, Signature};
use rota_graph::examples::{Sketch, noise};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What a batch must not have to wait for.
const SLOW: [&CStr; 2] = [c"capture", c"allocate"];
const LARGEST: u32 = 8;
/// Requests of a batch in the buckets 1, 2, 4 and 8.
const SIZES: [usize; 4] = [1, 2, 3, 8];

struct Host {
    engine: CudaEngine,
    standin: Standin,
    folder: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    fn new() -> Host {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let folder = std::env::temp_dir().join(format!("rota-warm-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let standin = Standin::load(&[("ROTA_STANDIN_FAULTS", folder.join("faults").to_str().unwrap())]);
        Host { engine: CudaEngine::open(0, Precision::Fp32).unwrap(), standin, folder, _alone: alone }
    }

    /// In one step: the driver reads the file at any time.
    fn set_faults(&self, lines: &str) {
        let written = self.folder.join("faults.new");
        std::fs::write(&written, lines).unwrap();
        std::fs::rename(written, self.folder.join("faults")).unwrap();
    }

    fn options(&self) -> CompileOptions {
        CompileOptions { max_batch: Some(LARGEST), ..CompileOptions::default() }
    }

    fn tiny(&self, name: &str) -> Box<dyn Network> {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny/repository");
        self.engine.compile(&models.join(name).join("1/model.onnx"), &self.options()).unwrap()
    }

    /// Two models with the same first layer.
    fn group(&self) -> Box<dyn Network> {
        let part = |name: &str, from: (&str, i64), to: (&str, i64)| {
            let mut sketch = Sketch::new(name);
            let x = sketch.input(from.0, &[-1, from.1], "n");
            let w = sketch.floats("w", &[from.1 as u64, to.1 as u64], &noise(to.1 as u64, (from.1 * to.1) as usize));
            let product = sketch.node("MatMul", &[&x, &w], "product", &[]);
            sketch.node("Relu", &[&product], to.0, &[]);
            sketch.output(to.0, &[-1, to.1], "n");
            let file = self.folder.join(format!("{name}.onnx"));
            std::fs::write(&file, sketch.into_file()).unwrap();
            self.engine.load(&file, &self.options()).unwrap()
        };
        let compile = |name: &str| {
            let network = self.engine.compile(&self.folder.join(format!("{name}.onnx")), &self.options()).unwrap();
            network.signature().clone()
        };
        let shared = part("shared", ("x", 16), ("h", 32));
        let own = [part("first", ("h", 32), ("y", 5)), part("second", ("h", 32), ("z", 7))];
        let mut signature = compile("shared");
        signature.outputs = [compile("first").outputs, compile("second").outputs].concat();
        let mut specs = vec![PartSpec { loaded: shared, feeds: vec![Feed::Input(0)], ports: vec![0], outputs: 0..2 }];
        specs.extend(own.into_iter().enumerate().map(|(at, loaded)| PartSpec {
            loaded,
            feeds: vec![Feed::Port { part: 0, port: 0 }],
            ports: Vec::new(),
            outputs: at..at + 1,
        }));
        parts::join(signature, specs, LARGEST).unwrap().network()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn warm(network: &mut dyn Network) {
    let class = sample::class_of(network.signature(), &Hints::default()).unwrap();
    network.warm(&class).unwrap();
}

fn requests(signature: &Signature, count: usize) -> Vec<Vec<HostTensor>> {
    (0..count as u64).map(|seed| inputs(signature, 1, &Hints::default(), seed)).collect()
}

/// Executes a batch of every size, in each set of buffers.
#[track_caller]
fn assert_all_sizes_run(network: &mut dyn Network) {
    let signature = network.signature().clone();
    let room = vec![4096; signature.outputs.len()];
    for size in SIZES {
        for _ in 0..2 {
            let results = execute(network, &requests(&signature, size), &room);
            assert!(results.iter().all(|(outcome, _)| *outcome == Outcome::Done));
        }
    }
}

#[test]
fn the_first_batches_of_a_network_that_was_warmed_make_no_plan() {
    let host = Host::new();
    for name in ["digits-mlp", "digits-conv", "digits-gru"] {
        let mut network = host.tiny(name);
        let [captures, _] = host.standin.during(SLOW, || warm(&mut *network));
        // Two sets of buffers for each size, and what a request alone takes.
        assert_eq!(captures, 2 * SIZES.len() as u64 + 1, "{name}");
        let asked = host.standin.during(SLOW, || assert_all_sizes_run(&mut *network));
        assert_eq!(asked, [0, 0], "{name}");
        let again = host.standin.during(SLOW, || warm(&mut *network));
        assert_eq!(again, [0, 0], "{name}: what is there is not made again");
    }
}

#[test]
fn a_group_is_warmed_part_by_part() {
    let host = Host::new();
    let mut network = host.group();
    let [captures, _] = host.standin.during(SLOW, || warm(&mut *network));
    assert_eq!(captures, 3 * (2 * SIZES.len() as u64 + 1));
    let asked = host.standin.during(SLOW, || assert_all_sizes_run(&mut *network));
    assert_eq!(asked, [0, 0]);
}

/// A device as the daemon has it.
struct Served {
    device: CpuDevice,
    signature: Signature,
    batches: u64,
}

impl Served {
    fn new(network: Box<dyn Network>) -> Served {
        let options = CpuOptions {
            name: "cuda0".into(),
            engine: "test".into(),
            cores: Vec::new(),
            roams: true,
            threads: 1,
            spin: Duration::ZERO,
        };
        let signature = network.signature().clone();
        let mut device = CpuDevice::spawn(options, Arc::new(|| {})).unwrap();
        device.install(NetworkId(0), network);
        Served { device, signature, batches: 0 }
    }

    fn execute(&mut self, size: usize) -> Box<Batch> {
        let room = vec![4096; self.signature.outputs.len()];
        let requests = requests(&self.signature, size);
        let mut batch = sample::lay_out(NetworkId(0), &self.signature, &requests, &room).unwrap();
        batch.id = BatchId(self.batches);
        self.batches += 1;
        let id = batch.id;
        self.device.prepare(batch);
        self.device.start(id);
        loop {
            match self.device.poll() {
                Some(batch) => return batch,
                None => std::thread::yield_now(),
            }
        }
    }

    fn wait_until(&mut self, mut is: impl FnMut(&mut CpuDevice) -> bool) {
        while !is(&mut self.device) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_lost_gpu_is_back_when_its_plans_are_and_says_once_why_that_takes_long() {
    let host = Host::new();
    let mut network = host.tiny("digits-mlp");
    warm(&mut *network);
    let mut served = Served::new(network);
    let is_done = |batch: &Batch| batch.requests.iter().all(|request| request.outcome == Outcome::Done);
    assert!(is_done(&served.execute(1)));
    host.set_faults("lost 0\n");
    assert!(!is_done(&served.execute(1)));
    served.wait_until(|device| device.is_lost());
    // It answers again; the first thing that is asked of its memory is refused.
    host.set_faults("alloc 1\n");
    let mut told = Vec::new();
    served.wait_until(|device| {
        told.extend(device.poll_trouble());
        assert!(device.is_lost(), "it is not back without its plans");
        !told.is_empty()
    });
    assert!(told[0].contains("the GPU's memory does not hold"), "{told:?}");
    served.wait_until(|device| !device.is_lost());
    assert_eq!(served.device.poll_trouble(), None, "once");
    let asked = host.standin.during(SLOW, || {
        for size in SIZES {
            assert!((0..2).all(|_| is_done(&served.execute(size))));
        }
    });
    assert_eq!(asked, [0, 0], "its first batches make no plan");
}
