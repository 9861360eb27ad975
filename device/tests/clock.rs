//! The stand-in driver's virtual time: what it says that work takes on a named GPU, and when.

mod common {
    pub mod timed;
}

use common::timed::{Engine, Scratch, has_settings, open, trace};
use rota_device::cuda::driver::{Context, DeviceMemory, Event, Graph, Module, PinnedMemory, Stream};
use rota_device::cuda::{roofline, standin};
use rota_kernels::{Float, Launch, Pointer, Softmax};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An H100 whose host takes no time.
const H100: [(&str, &str); 2] = [("ROTA_STANDIN_GPU", "h100"), ("ROTA_STANDIN_HOST", "none")];
/// As the driver has it for such a GPU: so many bytes take 10 µs on the bus, and a copy begins with 1 µs.
const BYTES: usize = 640_000;
const COPY: Duration = Duration::from_micros(11);
/// What a kernel takes of which nothing is said.
const KERNEL_LEAST: Duration = Duration::from_micros(2);

/// A GPU with memory on both sides.
struct Bench {
    context: Arc<Context>,
    module: Module,
    gpu: DeviceMemory,
    host: PinnedMemory,
}

impl Bench {
    fn new() -> Bench {
        let context = Arc::new(Context::retain(open(), 0).unwrap());
        let (gpu, host) = (DeviceMemory::new(&context, BYTES as u64), PinnedMemory::new(&context, BYTES));
        let module = Module::load(&context, standin::IMAGE).unwrap();
        Bench { module, gpu: gpu.unwrap(), host: host.unwrap(), context }
    }

    fn stream(&self) -> Stream {
        Stream::new(&self.context).unwrap()
    }

    /// An event behind what the stream was given so far.
    fn mark(&self, stream: &Stream) -> Event {
        let event = Event::new(&self.context).unwrap();
        event.record(stream).unwrap();
        event
    }

    /// Such an event, waited for.
    fn end(&self, stream: &Stream) -> Event {
        let event = self.mark(stream);
        event.synchronize().unwrap();
        event
    }

    fn copy_in(&self, stream: &Stream) {
        // SAFETY: both are as long, and every test waits for its streams before they are dropped.
        unsafe { stream.upload(self.gpu.address(), self.host.as_mut_ptr(), BYTES).unwrap() };
    }

    fn copy_out(&self, stream: &Stream) {
        // SAFETY: as above.
        unsafe { stream.download(self.host.as_mut_ptr(), self.gpu.address(), BYTES).unwrap() };
    }

    /// Of `columns` numbers in the GPU's memory, in place.
    fn softmax(&self, columns: u32) -> Launch {
        let place = Pointer(self.gpu.address());
        Softmax { dtype: Float::F32, outer: 1, columns, inner: 1, log: false, x: place, y: place }.launch().unwrap()
    }

    fn launch(&self, stream: &Stream, launch: &Launch) {
        let kernel = self.module.function(launch.kernel.name).unwrap();
        // SAFETY: the catalogue made the parameters for this kernel; the operands are in `gpu`.
        unsafe { stream.launch(kernel, launch.grid, launch.block, launch.shared_bytes, &launch.params).unwrap() };
    }
}

/// Between two events that have been come to, to the nanosecond.
#[track_caller]
fn assert_took(from: &Event, to: &Event, expected: Duration) {
    to.synchronize().unwrap();
    let nanoseconds = to.since(from).unwrap().as_nanos().abs_diff(expected.as_nanos());
    assert!(nanoseconds <= 1, "{:?}, expected {expected:?}", to.since(from).unwrap());
}

#[test]
fn copies_each_way_go_side_by_side_and_those_of_one_way_one_after_the_other() {
    if !has_settings("copies_each_way_go_side_by_side_and_those_of_one_way_one_after_the_other", &H100) {
        return;
    }
    let bench = Bench::new();
    let [first, second, third] = [bench.stream(), bench.stream(), bench.stream()];
    let begin = bench.mark(&first);
    bench.copy_in(&first);
    bench.copy_out(&second);
    bench.copy_in(&third);
    let ends = [&first, &second, &third].map(|stream| bench.mark(stream));
    assert_took(&begin, &ends[0], COPY);
    assert_took(&begin, &ends[1], COPY);
    assert_took(&begin, &ends[2], 2 * COPY);
}

#[test]
fn a_slower_gpu_takes_so_many_times_as_long() {
    let settings = [&H100[..], &[("ROTA_STANDIN_SLOWER", "500")]].concat();
    if !has_settings("a_slower_gpu_takes_so_many_times_as_long", &settings) {
        return;
    }
    let bench = Bench::new();
    let stream = bench.stream();
    let begin = bench.mark(&stream);
    bench.copy_in(&stream);
    assert_took(&begin, &bench.mark(&stream), 500 * COPY);
    stream.clear(bench.gpu.address(), BYTES).unwrap();
    let begin = bench.mark(&stream);
    bench.launch(&stream, &bench.softmax(64));
    assert_took(&begin, &bench.mark(&stream), 500 * KERNEL_LEAST);
}

#[test]
fn what_waits_for_an_event_begins_when_that_has_come() {
    if !has_settings("what_waits_for_an_event_begins_when_that_has_come", &H100) {
        return;
    }
    let bench = Bench::new();
    let (first, second) = (bench.stream(), bench.stream());
    let begin = bench.mark(&first);
    bench.copy_in(&first);
    second.wait(&bench.mark(&first)).unwrap();
    bench.copy_out(&second);
    assert_took(&begin, &bench.mark(&second), 2 * COPY);
}

#[test]
fn what_is_ready_earlier_takes_a_gap_before_what_was_asked_for_earlier() {
    if !has_settings("what_is_ready_earlier_takes_a_gap_before_what_was_asked_for_earlier", &H100) {
        return;
    }
    let bench = Bench::new();
    let [first, second, third] = [bench.stream(), bench.stream(), bench.stream()];
    let begin = bench.mark(&first);
    // The copy out waits for a copy in; before it there is room for one that waits for nothing.
    bench.copy_in(&first);
    second.wait(&bench.mark(&first)).unwrap();
    bench.copy_out(&second);
    bench.copy_out(&third);
    assert_took(&begin, &bench.mark(&third), COPY);
    assert_took(&begin, &bench.mark(&second), 2 * COPY);
}

#[test]
fn the_hosts_time_passes_with_what_it_sees_and_not_with_what_it_does() {
    if !has_settings("the_hosts_time_passes_with_what_it_sees_and_not_with_what_it_does", &H100) {
        return;
    }
    let bench = Bench::new();
    let (first, second) = (bench.stream(), bench.stream());
    let begin = bench.mark(&first);
    bench.copy_in(&first);
    std::thread::sleep(Duration::from_millis(20));
    // Not seen to have ended: it is asked for at the same moment as the first.
    bench.copy_out(&second);
    assert_took(&begin, &bench.mark(&second), COPY);
    bench.copy_out(&second);
    assert_took(&begin, &bench.mark(&second), 2 * COPY);
}

#[test]
fn threads_of_the_host_go_through_time_together() {
    let file = Scratch::new("clock-threads", "");
    let settings = [&H100[..], &[("ROTA_STANDIN_TRACE", file.text())]].concat();
    if !has_settings("threads_of_the_host_go_through_time_together", &settings) {
        let all = trace(file.path());
        let copies = |engine: Engine| all.iter().filter(move |done| done.engine == engine).collect::<Vec<_>>();
        let (ins, outs) = (copies(Engine::CopiesIn), copies(Engine::CopiesOut));
        assert_eq!((ins.len(), outs.len()), (20, 20));
        // Each is asked for when the one before the last was seen to end: at that very time, whoever else saw what meanwhile.
        for copies in [ins, outs] {
            assert!(copies.iter().zip(&copies[2..]).all(|(before, after)| after.asked == before.end), "{copies:?}");
        }
        return;
    }
    let bench = Bench::new();
    let all_began = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for copy in [Bench::copy_in, Bench::copy_out] {
            let (bench, all_began) = (&bench, &all_began);
            scope.spawn(move || {
                bench.context.enter().unwrap();
                let stream = bench.stream();
                all_began.wait();
                let mut in_flight: Option<Event> = None;
                for _ in 0..20 {
                    copy(bench, &stream);
                    let end = bench.mark(&stream);
                    if let Some(before) = in_flight.replace(end) {
                        before.synchronize().unwrap();
                    }
                }
                stream.synchronize().unwrap();
            });
        }
    });
}

#[test]
fn kernels_take_what_the_file_says_and_their_least_otherwise() {
    let place = Pointer(16);
    let listed = Softmax { dtype: Float::F32, outer: 1, columns: 64, inner: 1, log: false, x: place, y: place };
    let line = standin::time_line(&listed.launch().unwrap(), Duration::from_micros(40));
    let file = Scratch::new("clock-times", &format!("# softmax\n{line}"));
    let settings = [&H100[..], &[("ROTA_STANDIN_TIMES", file.text())]].concat();
    if !has_settings("kernels_take_what_the_file_says_and_their_least_otherwise", &settings) {
        return;
    }
    let bench = Bench::new();
    let (stream, other) = (bench.stream(), bench.stream());
    stream.clear(bench.gpu.address(), BYTES).unwrap();
    let begin = bench.mark(&stream);
    bench.launch(&stream, &bench.softmax(64));
    assert_took(&begin, &bench.mark(&stream), Duration::from_micros(40));
    let begin = bench.mark(&stream);
    bench.launch(&stream, &bench.softmax(65));
    assert_took(&begin, &bench.mark(&stream), KERNEL_LEAST);
    // Kernels of a graph follow one another, and other streams' follow them.
    let graph = Graph::capture(&stream, || {
        bench.launch(&stream, &bench.softmax(64));
        bench.launch(&stream, &bench.softmax(65));
        Ok(())
    });
    let begin = bench.mark(&stream);
    graph.unwrap().launch(&stream).unwrap();
    bench.launch(&other, &bench.softmax(64));
    assert_took(&begin, &bench.mark(&stream), Duration::from_micros(42));
    assert_took(&begin, &bench.mark(&other), Duration::from_micros(82));
}

#[test]
fn in_real_time_nothing_is_seen_to_end_before_its_virtual_end() {
    // 4 ms for one copy.
    let settings = [("ROTA_STANDIN_GPU", "t4")];
    if !has_settings("in_real_time_nothing_is_seen_to_end_before_its_virtual_end", &settings) {
        return;
    }
    let opening = Instant::now();
    let bench = Bench::new();
    let (stream, other) = (bench.stream(), bench.stream());
    let begin = bench.mark(&stream);
    let mut seen = Vec::new();
    for _ in 0..3 {
        for _ in 0..50 {
            bench.copy_in(&stream);
        }
        let end = bench.mark(&stream);
        while !end.is_done().unwrap() {
            std::thread::yield_now();
        }
        seen.push(end.since(&begin).unwrap());
        assert!(opening.elapsed() >= seen[seen.len() - 1], "{seen:?}");
        // What is asked for then begins no earlier.
        bench.copy_out(&other);
        assert!(bench.end(&other).since(&end).unwrap() >= Duration::from_micros(41));
    }
    // 640 kB by 16 GB/s, and 1 µs.
    assert!(seen.iter().zip(1..).all(|(seen, rounds)| *seen >= 50 * rounds * Duration::from_micros(41)), "{seen:?}");
}

#[test]
fn the_driver_knows_the_gpus_of_the_roofline() {
    let library = standin::library().unwrap_or_else(|error| panic!("{error}"));
    // SAFETY: the stand-in's initialisers only fill tables.
    let library = unsafe { libloading::Library::new(&library) }.unwrap();
    type Limits = unsafe extern "C" fn(*const std::ffi::c_char, *mut f64, *mut f64, *mut i32) -> i32;
    // SAFETY: the stand-in declares the function so.
    let limits = unsafe { library.get::<Limits>(b"rota_standin_limits\0") }.unwrap();
    for gpu in roofline::GPUS {
        let name = std::ffi::CString::new(gpu.name).unwrap();
        let (mut bus, mut memory, mut multiprocessors) = (0.0, 0.0, 0);
        // SAFETY: it reads the C string and writes three numbers.
        let known = unsafe { limits(name.as_ptr(), &mut bus, &mut memory, &mut multiprocessors) };
        assert_eq!(known, 0, "{} is not known", gpu.name);
        assert_eq!((memory, multiprocessors as u32), (gpu.bytes_per_second, gpu.multiprocessors), "{}", gpu.name);
        assert!(bus > 0.0 && bus < memory, "{}", gpu.name);
    }
}

#[test]
fn settings_that_make_no_sense_are_refused_in_words() {
    let file = Scratch::new("clock-settings", "rota_softmax_f32 1 1 one\n");
    for (settings, expected) in [
        ([("ROTA_STANDIN_GPU", "h900")], "ROTA_STANDIN_GPU is h900, known are h100, h200, a100, l4, t4"),
        ([("ROTA_STANDIN_HOST", "slow")], "ROTA_STANDIN_HOST is slow, it may be real or none"),
        ([("ROTA_STANDIN_SLOWER", "0")], "ROTA_STANDIN_SLOWER may be 1 to 1000000"),
        ([("ROTA_STANDIN_TIMES", "/nowhere")], "ROTA_STANDIN_TIMES: /nowhere can't be read"),
        ([("ROTA_STANDIN_TIMES", file.text())], "line 1: expected a kernel"),
    ] {
        let mut opens = std::process::Command::new(std::env::current_exe().unwrap());
        opens.args(["opens_with_the_settings_that_it_has", "--exact", "--ignored", "--nocapture"]).envs(settings);
        let output = opens.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{settings:?}: {said}");
    }
}

/// For the test above, in a process of its own.
#[test]
#[ignore = "another test starts it"]
fn opens_with_the_settings_that_it_has() {
    open();
}
