//! What a batch costs through the cpu device on top of the engine: the same batch in a bare loop of `run`, of `execute`, and
//! through the `Device` trait with the caller spinning, taken in turn so that all three see the same host. Needs cores 0 and 1.
//!
//!     cargo run --release -p rota-device --example overhead -- model.onnx [batch] [rounds]

use rota_device::check::check_batching;
use rota_device::engine::{self, CompileOptions, EngineChoice};
use rota_device::sample::{self, Numbers};
use rota_device::{BatchId, CpuDevice, CpuOptions, Device, HostTensor, NetworkId, TensorSpec};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let file = PathBuf::from(arguments.next().ok_or("usage: overhead model.onnx [batch] [rounds]")?);
    let items: u32 = arguments.next().map_or(Ok(8), |text| text.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(2000), |text| text.parse())?;
    let engine = engine::open(&EngineChoice::Auto)?.engine;
    let load = || engine.compile(&file, &CompileOptions { threads: 1, ..Default::default() });
    let (mut bare, mut served) = (load()?, load()?);
    let checked = check_batching(&mut *bare, &Default::default())?;
    served.set_signature(checked.signature.clone());

    let generate = |count: u32, seed| -> Option<Vec<HostTensor>> {
        let mut numbers = Numbers(seed);
        let tensor = |spec: &TensorSpec| {
            sample::tensor(spec, sample::shape(spec, count, &checked.hints, 1)?, &checked.hints, &mut numbers)
        };
        checked.signature.inputs.iter().map(tensor).collect()
    };
    let whole = generate(items, 0).ok_or("inputs are too large")?;
    let requests: Option<Vec<_>> = (0..items).map(|seed| generate(1, seed.into())).collect();
    let requests = requests.ok_or("inputs are too large")?;
    let room: Vec<usize> = bare.run(&requests[0])?.iter().map(|output| output.bytes.len()).collect();
    let lay_out = || sample::lay_out(NetworkId(0), &checked.signature, &requests, &room);
    let (mut direct, mut travelling) = (lay_out()?, Some(lay_out()?));

    // Each on a core of its own: two threads that spin on one core would wait for each other's time slices.
    let mut caller = CpuSet::new();
    caller.set(0);
    sched_setaffinity(None, &caller)?;
    let options = CpuOptions {
        name: "cpu0".into(),
        engine: engine.describe(),
        cores: vec![1],
        roams: false,
        threads: 1,
        spin: SPIN,
    };
    let mut device = CpuDevice::spawn(options, Arc::new(|| {}))?;
    device.install(NetworkId(0), served);
    let mut times: [Vec<Duration>; 3] = Default::default();
    for round in 0..rounds {
        times[0].push(timed(|| drop(bare.run(&whole))));
        times[1].push(timed(|| bare.execute(&mut direct)));
        let mut batch = travelling.take().ok_or("the batch is lost")?;
        batch.id = BatchId(round as u64);
        let begin = Instant::now();
        device.prepare(batch);
        device.start(BatchId(round as u64));
        travelling = loop {
            match device.poll() {
                Some(batch) => break Some(batch),
                None => std::hint::spin_loop(),
            }
        };
        times[2].push(begin.elapsed());
    }
    println!("{}, batch of {items} requests, median of {rounds}", device.describe());
    for (what, mut times) in ["run", "execute", "device"].into_iter().zip(times) {
        times.sort_unstable();
        println!("  {what:8} {:?}", times[times.len() / 2]);
    }
    Ok(())
}

/// The device's thread spins throughout.
const SPIN: Duration = Duration::from_millis(50);

fn timed(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}
