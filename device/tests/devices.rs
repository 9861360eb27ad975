//! Devices through the `Device` trait: order, completion, unknown networks, an orderly end.

mod common;

use common::{engines, inputs, load};
use rota_device::emulated::{self, EmulatedPrefix, EmulatedProfile, EmulatedSuffix};
use rota_device::sample::{self, Hints};
use rota_device::{
    Batch, BatchId, CpuDevice, CpuOptions, DType, Device, Dim, EmulatedNetwork, EmulatedOptions, HostTensor, Network,
    NetworkId, Outcome, Pace, RunError, Signature, Span, TensorSpec, Waker,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A waker that counts, and lets a test wait for the next ring.
#[derive(Default)]
struct Bell {
    rings: Mutex<u32>,
    rung: Condvar,
}

impl Bell {
    fn waker(self: &Arc<Bell>) -> Waker {
        let bell = self.clone();
        Arc::new(move || {
            *bell.rings.lock().unwrap() += 1;
            bell.rung.notify_all();
        })
    }

    /// The next batch of the device; fails when none comes in a minute.
    fn wait(&self, device: &mut dyn Device) -> Box<Batch> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut rings = self.rings.lock().unwrap();
        loop {
            if let Some(batch) = device.poll() {
                return batch;
            }
            assert!(Instant::now() < deadline, "no batch ended");
            rings = self.rung.wait_timeout(rings, Duration::from_secs(1)).unwrap().0;
        }
    }
}

fn cpu(bell: &Arc<Bell>, spin: Duration) -> CpuDevice {
    let options =
        CpuOptions { name: "cpu0".into(), engine: "test".into(), cores: vec![], roams: false, threads: 1, spin };
    CpuDevice::spawn(options, bell.waker()).unwrap()
}

fn batch(network: NetworkId, signature: &Signature, id: u64, seeds: std::ops::Range<u64>, room: usize) -> Box<Batch> {
    let requests: Vec<_> = seeds.map(|seed| inputs(signature, 1, &Hints::default(), seed)).collect();
    let mut batch = sample::lay_out(network, signature, &requests, &vec![room; signature.outputs.len()]).unwrap();
    batch.id = BatchId(id);
    batch
}

#[test]
fn a_cpu_device_executes_in_the_order_of_starts() {
    for engine in engines() {
        for spin in [Duration::ZERO, Duration::from_millis(2)] {
            let bell = Arc::new(Bell::default());
            let mut device = cpu(&bell, spin);
            let (mlp, state) = (load(&*engine, "mlp"), load(&*engine, "state"));
            let signatures = [mlp.signature().clone(), state.signature().clone()];
            device.install(NetworkId(0), mlp);
            device.install(NetworkId(7), state);
            let networks = [NetworkId(0), NetworkId(7)];
            for round in 0..50u64 {
                for (i, id) in [(0, 2 * round), (1, 2 * round + 1)] {
                    device.prepare(batch(networks[i], &signatures[i], id, id..id + 3, 64));
                }
                // Started the other way round than prepared.
                device.start(BatchId(2 * round + 1));
                device.start(BatchId(2 * round));
                for (i, id) in [(1, 2 * round + 1), (0, 2 * round)] {
                    let ended = bell.wait(&mut device);
                    assert_eq!(ended.id, BatchId(id));
                    assert!(ended.requests.iter().all(|request| request.outcome == Outcome::Done));
                    let outputs = sample::outputs(&ended, &signatures[i], 2);
                    assert!(outputs.iter().all(Option::is_some));
                }
            }
            assert!(device.poll().is_none());
        }
    }
}

/// A network on what executes by itself, as a GPU does: batches end when the test lets them. Even ones are staged.
struct Away {
    signature: Signature,
    /// "begin 0", "end 0", as they come.
    said: Arc<Mutex<Vec<String>>>,
    /// Batches before this one may end.
    ended: Arc<AtomicU32>,
}

impl Network for Away {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn set_signature(&mut self, signature: Signature) {
        self.signature = signature;
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    fn execute(&mut self, _: &mut Batch) {
        unreachable!("it is begun and asked about");
    }

    fn is_staged(&self, batch: &Batch) -> bool {
        batch.id.0.is_multiple_of(2)
    }

    fn begin(&mut self, batch: &mut Batch, _: &mut dyn FnMut(&mut Batch, usize)) -> bool {
        self.said.lock().unwrap().push(format!("begin {}", batch.id.0));
        false
    }

    fn ended(&mut self, batch: &mut Batch, _: &mut dyn FnMut(&mut Batch, usize)) -> bool {
        let ended = batch.id.0 < u64::from(self.ended.load(Ordering::Acquire));
        if ended {
            self.said.lock().unwrap().push(format!("end {}", batch.id.0));
        }
        ended
    }

    fn run(&mut self, _: &[HostTensor]) -> Result<Vec<HostTensor>, RunError> {
        unreachable!("nobody runs it")
    }
}

#[test]
fn a_staged_batch_is_begun_behind_the_one_that_executes_and_others_when_that_has_ended() {
    let profile = profile(&[(1, 0)]);
    let signature = EmulatedNetwork::new(&profile).signature().clone();
    let (said, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
    let network = Away { signature, said: Arc::clone(&said), ended: Arc::clone(&ended) };
    let bell = Arc::new(Bell::default());
    let mut device = cpu(&bell, Duration::ZERO);
    device.install(NetworkId(0), Box::new(network));
    let give = |device: &mut CpuDevice, id: u64| {
        device.prepare(bytes_batch(&profile, id, &[b"abcd"]));
        device.start(BatchId(id));
    };
    let waits_for = |what: &[&str]| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while *said.lock().unwrap() != what {
            assert!(Instant::now() < deadline, "{:?}, expected {what:?}", said.lock().unwrap());
            std::thread::yield_now();
        }
    };
    give(&mut device, 1);
    give(&mut device, 2);
    waits_for(&["begin 1", "begin 2"]);
    // 3 is not staged: it is begun behind nobody.
    ended.store(2, Ordering::Release);
    assert_eq!(bell.wait(&mut device).id, BatchId(1));
    give(&mut device, 3);
    ended.store(3, Ordering::Release);
    assert_eq!(bell.wait(&mut device).id, BatchId(2));
    waits_for(&["begin 1", "begin 2", "end 1", "end 2", "begin 3"]);
    ended.store(4, Ordering::Release);
    assert_eq!(bell.wait(&mut device).id, BatchId(3));
}

#[test]
fn requests_for_a_network_that_is_not_installed_fail() {
    let rten = rota_device::engine::open(&rota_device::EngineChoice::Rten).unwrap().engine;
    let network = load(&*rten, "mlp");
    let signature = network.signature().clone();
    let bell = Arc::new(Bell::default());
    let mut cpu = cpu(&bell, Duration::ZERO);
    let mut emulated = emulated::spawn(1, EmulatedOptions::default(), bell.waker()).unwrap();
    cpu.install(NetworkId(1), network);
    cpu.remove(NetworkId(1));
    for device in [&mut cpu as &mut dyn Device, &mut emulated[0]] {
        device.prepare(batch(NetworkId(1), &signature, 5, 0..2, 64));
        device.start(BatchId(5));
        let ended = bell.wait(device);
        for request in &ended.requests {
            assert_eq!(request.outcome, Outcome::Failed("network 1 is not installed on this device".into()));
        }
    }
}

#[test]
fn a_start_without_its_batch_is_harmless_and_dropping_a_device_with_batches_ends_its_thread() {
    let rten = rota_device::engine::open(&rota_device::EngineChoice::Rten).unwrap().engine;
    let network = load(&*rten, "mlp");
    let signature = network.signature().clone();
    let bell = Arc::new(Bell::default());
    let mut device = cpu(&bell, Duration::ZERO);
    device.install(NetworkId(0), network);
    device.start(BatchId(99));
    device.prepare(batch(NetworkId(0), &signature, 1, 0..1, 64));
    device.start(BatchId(1));
    assert_eq!(bell.wait(&mut device).id, BatchId(1));
    let waiting = batch(NetworkId(0), &signature, 2, 0..1, 64);
    let arena = Arc::downgrade(&waiting.requests[0].arena);
    device.prepare(waiting);
    drop(device);
    assert!(arena.upgrade().is_none(), "the batch that never started is gone with its thread");
}

#[test]
fn cores_that_are_not_there_are_refused() {
    let options = CpuOptions {
        name: "cpu0".into(),
        engine: "test".into(),
        cores: vec![100_000],
        roams: false,
        threads: 1,
        spin: Duration::ZERO,
    };
    let error = CpuDevice::spawn(options, Arc::new(|| {})).err().unwrap();
    assert_eq!(error.to_string(), "there is no core 100000");
}

fn tensor(name: &str, dims: &[u32]) -> TensorSpec {
    let mut all = vec![Dim::Dynamic("batch".into())];
    all.extend(dims.iter().map(|&size| Dim::Fixed(size)));
    TensorSpec { name: name.into(), dtype: DType::U8, dims: all, batch_axis: Some(0) }
}

fn profile(points: &[(u32, u64)]) -> EmulatedProfile {
    EmulatedProfile {
        model: "a".into(),
        signature: Signature { inputs: vec![tensor("x", &[4])], outputs: vec![tensor("y", &[10])] },
        pace: Pace::new(points.iter().map(|&(batch, us)| (batch, Duration::from_micros(us)))).unwrap(),
        memory_bytes: 1000,
        suffix: None,
    }
}

fn bytes_batch(profile: &EmulatedProfile, id: u64, contents: &[&[u8; 4]]) -> Box<Batch> {
    let request = |&content: &&[u8; 4]| vec![HostTensor::from_elements(&[1, 4], content).unwrap()];
    let requests: Vec<_> = contents.iter().map(request).collect();
    let mut batch = sample::lay_out(NetworkId(0), &profile.signature, &requests, &[10]).unwrap();
    batch.id = BatchId(id);
    batch
}

#[test]
fn an_emulated_device_takes_its_time_and_answers_each_request_with_its_own_input() {
    let profile = profile(&[(1, 3000), (3, 5000)]);
    let bell = Arc::new(Bell::default());
    let mut devices = emulated::spawn(3, EmulatedOptions::default(), bell.waker()).unwrap();
    assert_eq!(devices[2].describe(), "emulated2: emulated");
    for device in &mut devices {
        device.install(NetworkId(0), Box::new(EmulatedNetwork::new(&profile)));
    }
    let begin = Instant::now();
    for device in &mut devices {
        device.prepare(bytes_batch(&profile, 1, &[b"abcd", b"efgh"]));
        device.start(BatchId(1));
        device.prepare(bytes_batch(&profile, 2, &[b"1234"]));
        device.start(BatchId(2));
        assert!(device.poll().is_none(), "nothing has ended yet");
    }
    for device in &mut devices {
        let first = bell.wait(device);
        let second = bell.wait(device);
        assert_eq!((first.id, second.id), (BatchId(1), BatchId(2)));
        assert_eq!(first.took, Duration::from_millis(4));
        assert_eq!(second.took, Duration::from_millis(3));
        // One begins when the other is due, to the nanosecond, whenever the thread woke.
        assert_eq!(second.started.unwrap(), first.started.unwrap() + first.took);
        assert!(begin.elapsed() >= Duration::from_millis(7), "a batch ends no earlier than it is due");
        let output = |batch: &Batch, request| sample::outputs(batch, &profile.signature, request)[0].clone().unwrap();
        assert_eq!(&*output(&first, 0).bytes, b"abcdabcdab");
        assert_eq!(&*output(&first, 1).bytes, b"efghefghef");
        assert_eq!(&*output(&second, 0).bytes, b"1234123412");
    }
}

#[test]
fn a_group_takes_the_shared_part_once_and_tells_of_each_member_at_the_end_of_its_own() {
    let pace = |us: &[(u32, u64)]| Pace::new(us.iter().map(|&(b, us)| (b, Duration::from_micros(us)))).unwrap();
    let prefix =
        Arc::new(EmulatedPrefix { name: "trunk".into(), pace: pace(&[(1, 2000), (4, 5000)]), memory_bytes: 900 });
    let member = |model: &str, us, outputs: &[u32]| EmulatedProfile {
        model: model.into(),
        signature: Signature {
            inputs: vec![tensor("x", &[4])],
            outputs: outputs.iter().map(|&size| tensor("y", &[size])).collect(),
        },
        suffix: Some(EmulatedSuffix {
            prefix: prefix.clone(),
            pace: pace(&[(1, us), (2, us + 500)]),
            memory_bytes: 50,
        }),
        ..profile(&[(1, 9000)])
    };
    let (a, b) = (member("a", 1000, &[2, 3]), member("b", 3000, &[5]));
    let network = EmulatedNetwork::group(&prefix, &[&a, &b]).unwrap();
    assert_eq!(network.memory_bytes(), 1000);
    assert!(EmulatedNetwork::group(&prefix, &[&a]).is_none(), "one model is no group");
    assert!(EmulatedNetwork::group(&prefix, &[&a, &profile(&[(1, 1)])]).is_none(), "it shares nothing");
    let signature = network.signature().clone();
    // The requests ask a, b, both, a.
    let requests: Vec<_> =
        [b"abcd", b"efgh", b"ijkl", b"mnop"].map(|text| vec![HostTensor::from_elements(&[1, 4], text).unwrap()]).into();
    let mut batch = sample::lay_out(NetworkId(0), &signature, &requests, &[2, 3, 5]).unwrap();
    for (request, output) in [(0, 2), (1, 0), (1, 1), (3, 2)] {
        batch.spans[request * 4 + 1 + output] = Span { offset: Span::UNWANTED, bytes: 0 };
    }
    let bell = Arc::new(Bell::default());
    let mut devices = emulated::spawn(1, EmulatedOptions::default(), bell.waker()).unwrap();
    let device = &mut devices[0];
    device.install(NetworkId(0), Box::new(network));
    let id = batch.id;
    device.prepare(batch);
    device.start(id);
    let batch = bell.wait(device);
    // The shared part for 4 items, a for 3, which is past what was measured, b for 2.
    let a_takes = Duration::from_micros(1500).mul_f64(1.5);
    assert_eq!(batch.took, Duration::from_micros(5000 + 3500) + a_takes);
    let early: Vec<_> = std::iter::from_fn(|| device.poll_early()).collect();
    let told: Vec<_> = early.iter().map(|early| (early.key, early.output, early.last)).collect();
    let key = |request: usize| batch.requests[request].key;
    assert_eq!(told, [(key(0), 0, false), (key(0), 1, true), (key(3), 0, false), (key(3), 1, true)]);
    assert!(early.iter().all(|early| early.took == Duration::from_micros(5000) + a_takes && early.items == 4));
    let outcomes: Vec<_> = batch.requests.iter().map(|request| request.outcome.clone()).collect();
    assert_eq!(outcomes, [Outcome::Told, Outcome::Done, Outcome::Done, Outcome::Told]);
    let output =
        |request, output: usize| sample::outputs(&batch, &signature, request)[output].clone().map(|t| t.bytes.to_vec());
    assert_eq!([output(0, 0), output(0, 1), output(0, 2)], [Some(b"ab".to_vec()), Some(b"abc".to_vec()), None]);
    assert_eq!([output(1, 0), output(1, 2)], [None, Some(b"efghe".to_vec())]);
    assert_eq!([output(2, 1), output(2, 2)], [Some(b"ijk".to_vec()), Some(b"ijkli".to_vec())]);
}

#[test]
fn a_device_that_takes_no_time_ends_a_batch_inside_start() {
    let profile = profile(&[(1, 0)]);
    let rings = Arc::new(AtomicU32::new(0));
    let counted = rings.clone();
    let waker: Waker = Arc::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let mut devices = emulated::spawn(1, EmulatedOptions::default(), waker).unwrap();
    let device = &mut devices[0];
    device.install(NetworkId(0), Box::new(EmulatedNetwork::new(&profile)));
    for id in 0..100 {
        device.prepare(bytes_batch(&profile, id, &[b"abcd"]));
        assert!(device.poll().is_none());
        device.start(BatchId(id));
        assert_eq!(device.poll().unwrap().id, BatchId(id));
        assert_eq!(rings.load(Ordering::Relaxed) as u64, id + 1);
    }
}

#[test]
fn many_emulated_devices_each_end_every_batch_once() {
    let profile = profile(&[(1, 200), (8, 900)]);
    let bell = Arc::new(Bell::default());
    let mut devices = emulated::spawn(100, EmulatedOptions::default(), bell.waker()).unwrap();
    for device in &mut devices {
        device.install(NetworkId(0), Box::new(EmulatedNetwork::new(&profile)));
    }
    for round in 0..20u64 {
        for device in &mut devices {
            device.prepare(bytes_batch(&profile, round, &[b"abcd", b"efgh"]));
            device.start(BatchId(round));
        }
        for device in &mut devices {
            let ended = bell.wait(device);
            assert_eq!(ended.id, BatchId(round));
            assert!(ended.requests.iter().all(|request| request.outcome == Outcome::Done));
        }
    }
    // With batches outstanding: they are dropped, and so is the thread.
    for device in &mut devices {
        device.prepare(bytes_batch(&profile, 99, &[b"abcd"]));
        device.start(BatchId(99));
    }
}

#[test]
fn a_real_network_on_an_emulated_device_is_served_too() {
    let rten = rota_device::engine::open(&rota_device::EngineChoice::Rten).unwrap().engine;
    let network = load(&*rten, "mlp");
    let signature = network.signature().clone();
    let bell = Arc::new(Bell::default());
    let mut devices = emulated::spawn(1, EmulatedOptions::default(), bell.waker()).unwrap();
    devices[0].install(NetworkId(0), network);
    devices[0].prepare(batch(NetworkId(0), &signature, 3, 0..4, 64));
    devices[0].start(BatchId(3));
    let ended = bell.wait(&mut devices[0]);
    assert!(ended.requests.iter().all(|request| request.outcome == Outcome::Done));
}
