//! A grid's blocks side by side on the host's cores: the same bits and the same errors as one after the other, whoever else launches.

mod support;

use rota_kernels::host::{Host, Memory, Order, folder, shared_object};
use rota_kernels::params::SoftmaxParams;
use rota_kernels::{Conv, Cost, Epilogue, Gemm, Kernel, Launch, Layout, Math, Matrix, Pointer};
use support::{Numbers, to_f16};

/// Enough blocks, each of them long enough, that helpers come.
fn cases() -> Vec<(&'static str, Memory, Launch)> {
    let numbers = |seed: u64, count: usize| Numbers::new(seed).take(count);
    let gemm = |math: Math, memory: &mut Memory, x: Pointer, w: Pointer| {
        let y = memory.alloc(200 * 300 * 4);
        let (a, b) = (Matrix::row_major(x, 130), Matrix::transposed(w, 130));
        let c = Matrix::row_major(y, 300);
        let epilogue = Epilogue::default();
        Gemm { math, rows: 200, columns: 300, depth: 130, batches: [1, 1], a, b, c, epilogue }.launch().unwrap()
    };
    let mut exact = Memory::default();
    let (x, w) = (exact.upload(&numbers(1, 200 * 130)), exact.upload(&numbers(2, 300 * 130)));
    let f32_launch = gemm(Math::F32, &mut exact, x, w);
    let mut half = Memory::default();
    let (x, w) = (half.upload(&to_f16(&numbers(3, 200 * 130))), half.upload(&to_f16(&numbers(4, 300 * 130))));
    let f16_launch = gemm(Math::F16, &mut half, x, w);
    let mut pictures = Memory::default();
    let conv = Conv {
        math: Math::F32,
        images: 3,
        channels: 8,
        input: [33, 35],
        filters: 70,
        output: [33, 35],
        groups: 1,
        kernel: [3, 3],
        strides: [1, 1],
        dilations: [1, 1],
        pads: [1, 1],
        layout: Layout::Nchw,
        x_layout: Layout::Nchw,
        x: pictures.upload(&numbers(5, 3 * 8 * 33 * 35)),
        w: pictures.upload(&numbers(6, 70 * 8 * 9)),
        y: pictures.alloc(3 * 70 * 33 * 35 * 4),
        epilogue: Epilogue::default(),
    };
    let conv = conv.launch().unwrap();
    vec![("gemm f32", exact, f32_launch), ("gemm f16", half, f16_launch), ("conv f32", pictures, conv)]
}

#[test]
fn blocks_side_by_side_give_the_bits_of_one_after_the_other() {
    let host = Host::load().unwrap();
    for (name, mut memory, launch) in cases() {
        assert!(launch.grid.iter().product::<u32>() > 8, "{name} has {:?} blocks", launch.grid);
        let before = memory.snapshot();
        host.run_in(Order::Forward, &launch, &mut memory).unwrap();
        let expected = memory.snapshot();
        assert!(expected != before, "{name} changed nothing");
        for _ in 0..5 {
            memory.restore(&before);
            host.run_in(Order::Any, &launch, &mut memory).unwrap();
            assert!(memory.snapshot() == expected, "{name} gives other bits");
        }
    }
}

#[test]
fn any_number_of_threads_launch_at_once_and_none_waits_for_another() {
    let host = Host::load().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for (name, mut memory, launch) in cases() {
                    let before = memory.snapshot();
                    host.run_in(Order::Forward, &launch, &mut memory).unwrap();
                    let expected = memory.snapshot();
                    memory.restore(&before);
                    host.run_in(Order::Any, &launch, &mut memory).unwrap();
                    assert!(memory.snapshot() == expected, "{name} gives other bits");
                }
            });
        }
    });
}

#[test]
fn of_blocks_that_fail_the_first_is_told_of() {
    static DIVERGENT: Kernel = Kernel {
        name: "planted_divergent_barrier",
        params: "SoftmaxParams",
        params_bytes: size_of::<SoftmaxParams>(),
        pointers: 2,
        blocks: &[64],
    };
    let host_sources = ["fibers.cpp", "half.cpp", "host.cpp", "pool.cpp", "planted/planted.cu"];
    let sources = host_sources.map(|name| folder().join("host").join(name));
    let host = Host::open(shared_object("librota_planted_fast.so", &sources, &[])).unwrap();
    let mut memory = Memory::default();
    let x = memory.upload(&Numbers::new(1).take(64));
    let y = memory.alloc(64 * 4);
    let params = SoftmaxParams { x, y, outer: 1, columns: 64, inner: 1, log: 0 };
    let params = zerocopy::IntoBytes::as_bytes(&params).to_vec();
    let launch = Launch {
        kernel: &DIVERGENT,
        grid: [500, 7, 1],
        block: [64, 1, 1],
        shared_bytes: 0,
        params,
        cost: Cost::default(),
    };
    for _ in 0..20 {
        let error = host.run(&launch, &mut memory).unwrap_err();
        assert!(error.contains("threads ended while others wait at __syncthreads in block (0, 0, 0)"), "{error}");
    }
}
