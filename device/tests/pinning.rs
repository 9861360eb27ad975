//! Which cores the threads run on, as the system sees it. One test, alone in its process, so that every thread is known.

mod common;

use common::{engines, model};
use rota_device::engine::CompileOptions;
use rota_device::{CpuDevice, CpuOptions, EngineKind};
use rustix::thread::{CpuSet, sched_getaffinity};
use std::sync::Arc;
use std::time::Duration;

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

#[test]
fn threads_run_on_the_cores_that_they_are_given() {
    let allowed = sched_getaffinity(None).unwrap();
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).take(2).collect();
    let [first, second] = cores[..] else {
        return eprintln!("skipped: this process may use one core only");
    };
    let on = |core: usize| move |(_, cores): &&(String, String)| *cores == core.to_string();

    let options = CpuOptions {
        name: "cpu0".into(),
        engine: "test".into(),
        cores: vec![second, first],
        threads: 2,
        spin: Duration::ZERO,
    };
    let device = CpuDevice::spawn(options, Arc::new(|| {})).unwrap();
    let seen = threads();
    let executor = seen.iter().find(|(name, _)| name == "rota-cpu0").expect("the executing thread");
    assert_eq!(executor.1, second.to_string());
    drop(device);

    for engine in engines() {
        let options = CompileOptions { threads: 2, cores: vec![second, first], ..Default::default() };
        let network = engine.compile(&model("mlp"), &options).unwrap();
        let seen = threads();
        match engine.kind() {
            EngineKind::OnnxRuntime => assert_eq!(seen.iter().filter(on(first)).count(), 1, "{seen:?}"),
            EngineKind::Rten => {
                let pool: Vec<_> = seen.iter().filter(|(name, _)| name.starts_with("rten-")).collect();
                assert_eq!(pool.len(), 2, "{seen:?}");
                let both = if second == first + 1 { format!("{first}-{second}") } else { format!("{first},{second}") };
                assert!(pool.iter().all(|(_, cores)| *cores == both), "{seen:?}");
            }
        }
        drop(network);
    }
}
