//! What the stand-in driver refuses, as a real one does, and the faults that it can be told to have: the tests above it rest on that.

use rota_device::cuda::driver::{self, Context, DeviceMemory, DriverError, Event, Graph, Module, PinnedMemory, Stream};
use rota_device::cuda::standin;
use std::sync::Arc;

fn context() -> Arc<Context> {
    let library = standin::library().unwrap_or_else(|error| panic!("{error}"));
    let driver = driver::open_library(Some(&library)).unwrap();
    Arc::new(Context::retain(driver, 0).unwrap())
}

#[track_caller]
fn assert_refused<T>(result: Result<T, DriverError>, expected: &str) {
    match result {
        Err(DriverError::Call { name, .. }) => assert_eq!(name, expected),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was not refused"),
    }
}

#[test]
fn copies_outside_of_the_gpus_memory_are_refused() {
    let context = context();
    let stream = Stream::new(&context).unwrap();
    let memory = DeviceMemory::new(&context, 64).unwrap();
    let mut host = [0u8; 128];
    // SAFETY: what would be unsound is refused; the others stay inside of both ranges, and the stream is waited for.
    unsafe {
        assert_refused(stream.upload(memory.address(), host.as_ptr(), 65), "CUDA_ERROR_INVALID_VALUE");
        assert_refused(stream.download(host.as_mut_ptr(), memory.address() + 1, 64), "CUDA_ERROR_INVALID_VALUE");
        let freed = DeviceMemory::new(&context, 1 << 20).unwrap().address();
        assert_refused(stream.upload(freed, host.as_ptr(), 64), "CUDA_ERROR_INVALID_VALUE");
        stream.upload(memory.address(), [7; 64].as_ptr(), 64).unwrap();
        stream.download(host.as_mut_ptr(), memory.address(), 64).unwrap();
    }
    assert_eq!(host[..65], [&[7; 64][..], &[0]].concat());
}

#[test]
fn memory_that_is_not_there_is_refused() {
    let context = context();
    let (_, total) = context.memory().unwrap();
    assert_refused(DeviceMemory::new(&context, total + 1), "CUDA_ERROR_OUT_OF_MEMORY");
}

#[test]
fn launches_that_a_kernel_can_not_take_are_refused() {
    let context = context();
    let stream = Stream::new(&context).unwrap();
    assert_refused(Module::load(&context, b"not an image\0"), "CUDA_ERROR_INVALID_IMAGE");
    let module = Module::load(&context, standin::IMAGE).unwrap();
    assert_refused(module.function("rota_nothing"), "CUDA_ERROR_NOT_FOUND");
    let softmax = module.function("rota_softmax_f32").unwrap();
    // SAFETY: none of these launches is begun.
    unsafe {
        let too_many_threads = stream.launch(softmax, [1, 1, 1], [2048, 1, 1], 0, &[0; 32]);
        assert_refused(too_many_threads, "CUDA_ERROR_INVALID_VALUE");
        assert_refused(stream.launch(softmax, [0, 1, 1], [32, 1, 1], 0, &[0; 32]), "CUDA_ERROR_INVALID_VALUE");
        assert_refused(stream.launch(softmax, [1, 1, 1], [32, 1, 1], 0, &[0; 24]), "CUDA_ERROR_INVALID_VALUE");
    }
}

#[test]
fn what_is_captured_is_done_when_it_is_launched_and_as_often() {
    let context = context();
    let stream = Stream::new(&context).unwrap();
    let memory = DeviceMemory::new(&context, 8).unwrap();
    let pinned = PinnedMemory::new(&context, 8).unwrap();
    let (from, to, address) = ([1u8; 8], pinned.as_mut_ptr(), memory.address());
    // SAFETY: all ranges have 8 bytes and outlive the stream's work.
    let graph = Graph::capture(&stream, || unsafe { stream.download(to, address, 8) }).unwrap();
    for value in [1u8, 2] {
        // SAFETY: as above.
        unsafe { stream.upload(address, from.map(|one| one * value).as_ptr(), 8).unwrap() };
        stream.synchronize().unwrap();
        assert_ne!(pinned.bytes(), [value; 8]);
        graph.launch(&stream).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(pinned.bytes(), [value; 8]);
    }
    assert_refused(
        Graph::capture(&stream, || DeviceMemory::new(&context, 8).map(drop)).map(drop),
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
    );
}

#[test]
fn an_event_holds_another_stream_back() {
    let context = context();
    let (first, second) = (Stream::new(&context).unwrap(), Stream::new(&context).unwrap());
    let memory = DeviceMemory::new(&context, 1 << 20).unwrap();
    let pinned = PinnedMemory::new(&context, 1 << 20).unwrap();
    let event = Event::new(&context).unwrap();
    assert!(event.is_done().unwrap(), "it was never recorded");
    for value in 1..50u8 {
        let bytes = vec![value; 1 << 20];
        // SAFETY: all ranges have the same length, and both streams are waited for.
        unsafe {
            first.upload(memory.address(), bytes.as_ptr(), bytes.len()).unwrap();
            event.record(&first).unwrap();
            second.wait(&event).unwrap();
            second.download(pinned.as_mut_ptr(), memory.address(), bytes.len()).unwrap();
        }
        second.synchronize().unwrap();
        assert!(pinned.bytes().iter().all(|&byte| byte == value));
    }
}
