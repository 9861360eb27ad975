//! Which cores the threads run on, as the system sees it. One test, alone in its process, so that every thread is known.

mod common;

use common::{engines, model};
use rota_device::engine::CompileOptions;
use rota_device::{CpuDevice, CpuOptions, EngineKind};
use rustix::thread::{CpuSet, sched_getaffinity};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Name and allowed cores ("0-1") of every thread of this process.
fn threads() -> Vec<(String, String)> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    // A thread may end while it is read.
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
        .map(|status| {
            let field = |name: &str| {
                status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
            };
            (field("Name:"), field("Cpus_allowed_list:"))
        })
        .collect()
}

/// Waits until `count` threads may run on `core` and nowhere else: a thread is seen before it has pinned itself.
#[track_caller]
fn assert_pinned(count: usize, core: usize, what: &str) {
    let core = core.to_string();
    let deadline = Instant::now() + Duration::from_secs(20);
    while threads().iter().filter(|(_, cores)| *cores == core).count() != count {
        assert!(Instant::now() < deadline, "{what}: {count} threads should be on core {core}: {:?}", threads());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn threads_run_on_the_cores_that_they_are_given() {
    let allowed = sched_getaffinity(None).unwrap();
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).take(2).collect();
    let [first, second] = cores[..] else {
        return eprintln!("skipped: this process may use one core only");
    };

    let options = CpuOptions {
        name: "cpu0".into(),
        engine: "test".into(),
        cores: vec![second, first],
        roams: false,
        threads: 2,
        spin: Duration::ZERO,
    };
    let device = CpuDevice::spawn(options, Arc::new(|| {})).unwrap();
    assert_pinned(1, second, "the executing thread");
    drop(device);
    assert_pinned(0, second, "a dropped device");

    for engine in engines() {
        // ONNX Runtime's second thread gets the second core, for the first is the caller's. All of rten's are its own.
        let (cores, count) = match engine.kind() {
            EngineKind::OnnxRuntime => (vec![second, first], 1),
            EngineKind::Rten => (vec![first], 2),
            EngineKind::Cuda => unreachable!("only the engines of the host are tested here"),
        };
        let options = CompileOptions { threads: 2, cores, ..Default::default() };
        let network = engine.compile(&model("mlp"), &options).unwrap();
        assert_pinned(count, first, &engine.describe());
        drop(network);
        assert_pinned(0, first, &engine.describe());
    }
}
