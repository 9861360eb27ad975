//! Clients' arenas on the stand-in driver, with two GPUs: registered once, for both, until the client has gone; and still there when the GPU is
//! lost whose context registered them.

mod common;

use common::inputs;
use common::standin::Standin;
use rota_device::cuda::{CudaEngine, Precision};
use rota_device::engine::{CompileOptions, Engine};
use rota_device::sample::{self, Hints};
use rota_device::{Arena, Batch, Network, NetworkId, Outcome};
use rota_graph::examples::Sketch;
use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

const REGISTRATIONS: [&CStr; 2] = [c"register", c"unregister"];
/// Copies that the driver takes through memory of its own, because a range is not registered.
const STAGED: [&CStr; 2] = [c"staged upload", c"staged download"];

/// Both GPUs, a network on each, and the file whose lines are faults. One test at a time has them.
struct Host {
    standin: Standin,
    networks: [Box<dyn Network>; 2],
    engines: [CudaEngine; 2],
    faults: PathBuf,
    /// Dropped last.
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    fn new() -> Host {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let faults = std::env::temp_dir().join(format!("rota-arenas-{}", std::process::id()));
        // Without pools, so that memory is taken by the plain calls at least here.
        let pools = ("ROTA_STANDIN_POOLS", "0");
        let settings = [("ROTA_STANDIN_GPUS", "2"), ("ROTA_STANDIN_FAULTS", faults.to_str().unwrap()), pools];
        let standin = Standin::load(&settings);
        let engines = [0, 1].map(|ordinal| CudaEngine::open(ordinal, Precision::Fp32).unwrap());
        let file = faults.with_extension("onnx");
        std::fs::write(&file, mostly_copies()).unwrap();
        let options = CompileOptions { max_batch: Some(4), ..CompileOptions::default() };
        let networks = [0, 1].map(|gpu| engines[gpu].compile(&file, &options).unwrap());
        Host { standin, networks, engines, faults, _alone: alone }
    }

    /// A batch of requests of one item, whose arenas nobody has registered yet.
    fn batch(&self, requests: u64) -> Box<Batch> {
        let signature = self.networks[0].signature();
        let requests: Vec<_> = (0..requests).map(|seed| inputs(signature, 1, &Hints::default(), seed)).collect();
        sample::lay_out(NetworkId(0), signature, &requests, &vec![4096; signature.outputs.len()]).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.faults);
        let _ = std::fs::remove_file(self.faults.with_extension("onnx"));
    }
}

/// A model that takes a megabyte for an item, and looks at 16 bytes of it.
fn mostly_copies() -> Vec<u8> {
    let mut sketch = Sketch::new("mostly copies");
    let x = sketch.input("x", &[-1, 1 << 18], "n");
    let (from, to, axis) = (sketch.ints("from", &[0]), sketch.ints("to", &[4]), sketch.ints("axis", &[1]));
    let few = sketch.node("Slice", &[&x, &from, &to, &axis], "few", &[]);
    sketch.node("Relu", &[&few], "y", &[]);
    sketch.output("y", &[-1, 4], "n");
    sketch.into_file()
}

#[track_caller]
fn assert_done(network: &mut dyn Network, batch: &mut Batch) {
    network.execute(batch);
    assert!(batch.requests.iter().all(|request| request.outcome == Outcome::Done), "{:?}", batch.requests);
}

#[test]
fn an_arena_is_registered_once_for_both_gpus_and_let_go_when_its_client_and_its_last_batch_have_gone() {
    let mut host = Host::new();
    let mut batch = host.batch(1);
    let arena = batch.requests[0].arena.clone();
    assert_eq!(host.engines[0].device_address(&arena), None, "nobody has registered it");
    let registered = host.standin.during(REGISTRATIONS, || host.engines.iter().for_each(|engine| engine.adopt(&arena)));
    assert_eq!(registered[0], 1, "once, whoever asks");
    for engine in &host.engines {
        assert!(engine.device_address(&arena).is_some(), "each GPU's kernels reach it");
    }
    for network in &mut host.networks {
        // Plans are made at the first batch.
        assert_done(&mut **network, &mut batch);
        let counted = [STAGED[0], STAGED[1], REGISTRATIONS[0], REGISTRATIONS[1]];
        let asked = host.standin.during(counted, || assert_done(&mut **network, &mut batch));
        assert_eq!(asked, [0; 4], "copies go straight from and to the arena, on either GPU");
    }
    let kept = host.standin.during(REGISTRATIONS, || {
        assert!(!host.engines[0].let_go(&arena), "a batch has it still");
    });
    assert_eq!(kept, [0, 0]);
    assert!(host.engines[1].device_address(&arena).is_some());
    drop(batch);
    let gone = host.standin.during(REGISTRATIONS, || assert!(host.engines[0].let_go(&arena)));
    assert_eq!(gone, [0, 1]);
    assert_eq!(host.engines[1].device_address(&arena), None);
}

#[test]
fn the_loss_of_the_gpu_that_registered_takes_an_arena_from_no_other() {
    const LOSSES: usize = 8;
    let mut host = Host::new();
    let mut batches = [host.batch(4), host.batch(4)];
    let arenas: Vec<Arena> =
        batches.iter().flat_map(|batch| &batch.requests).map(|request| request.arena.clone()).collect();
    arenas.iter().for_each(|arena| host.engines[0].adopt(arena));
    for (network, batch) in host.networks.iter_mut().zip(&mut batches) {
        assert_done(&mut **network, batch);
    }
    // The first GPU was the first that could register; after its loss all is the second's, and so on. The other executes without a pause: an
    // arena that is unregistered under a copy would be its end.
    for loss in 0..LOSSES {
        let gone = loss % 2;
        let Host { networks: [first, second], standin, engines, faults, .. } = &mut host;
        let (lost, other) = if gone == 0 { (first, second) } else { (second, first) };
        let [of_first, of_second] = &mut batches;
        let (of_lost, of_other) = if gone == 0 { (of_first, of_second) } else { (of_second, of_first) };
        let registered = standin.count(c"register");
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| {
                let mut executed = 0;
                while !ended.load(Ordering::Relaxed) || executed < 10 {
                    assert_done(&mut **other, of_other);
                    executed += 1;
                }
            });
            std::fs::write(&*faults, format!("lost {gone}\n")).unwrap();
            lost.execute(of_lost);
            assert!(matches!(of_lost.requests[0].outcome, Outcome::Failed(_)), "{:?}", of_lost.requests[0].outcome);
            assert!(lost.is_lost());
            ended.store(true, Ordering::Relaxed);
            busy.join().unwrap();
        });
        assert_eq!(standin.count(c"register"), registered + arenas.len() as u64, "they are the other's now");
        assert!(arenas.iter().all(|arena| engines[1 - gone].device_address(arena).is_some()));
        let staged = standin.during(STAGED, || assert_done(&mut **other, of_other));
        assert_eq!(staged, [0, 0], "the other GPU copies straight from and to the arenas");
        std::fs::remove_file(&*faults).unwrap();
        while lost.is_lost() {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_done(&mut **lost, of_lost);
        let staged = standin.during(STAGED, || assert_done(&mut **lost, of_lost));
        assert_eq!(staged, [0, 0], "so does the one that is back");
    }
}
