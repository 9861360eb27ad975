//! `gemm.cu` and `gemm_mma.cu` on the host against three loops in f64.

mod support;

use proptest::prelude::*;
use rota_kernels::host::Memory;
use rota_kernels::{Activation, Epilogue, Gemm, Launch, Math, Matrix, Pointer, Type};
use support::{Numbers, run_all, run_chains, to_f16};

/// A matrix per batch in a buffer of its own layout.
struct Operand {
    values: Vec<f32>,
    matrix: Matrix,
}

impl Operand {
    /// `gap` elements between its rows (or columns), and `skip` of the two batch axes shared.
    fn random(
        numbers: &mut Numbers,
        size: [u32; 2],
        batches: [u32; 2],
        transposed: bool,
        gap: u32,
        skip: [bool; 2],
        math: Math,
    ) -> Operand {
        let (lines, width) = if transposed { (size[1], size[0] + gap) } else { (size[0], size[1] + gap) };
        let one = u64::from(lines) * u64::from(width);
        let inner = if skip[1] { 0 } else { one };
        let outer = if skip[0] { 0 } else { one * u64::from(if skip[1] { 1 } else { batches[1] }) };
        let count =
            one * if skip[0] { 1 } else { u64::from(batches[0]) } * if skip[1] { 1 } else { u64::from(batches[1]) };
        let values = numbers.take(count as usize).iter().map(|&x| rounded(x, math)).collect();
        let (row, column) = if transposed { (1, width) } else { (width, 1) };
        Operand { values, matrix: Matrix { pointer: Pointer::NONE, row, column, batch: [outer, inner] } }
    }

    fn at(&self, batch: [u32; 2], row: u32, column: u32) -> f64 {
        let m = &self.matrix;
        let place = u64::from(batch[0]) * m.batch[0]
            + u64::from(batch[1]) * m.batch[1]
            + u64::from(row) * u64::from(m.row)
            + u64::from(column) * u64::from(m.column);
        f64::from(self.values[place as usize])
    }

    fn upload(&self, math: Math, memory: &mut Memory) -> Matrix {
        Matrix { pointer: upload(&self.values, math.storage(), memory), ..self.matrix }
    }
}

/// What the operand becomes before it is multiplied.
fn rounded(x: f32, math: Math) -> f32 {
    match math {
        Math::F32 => x,
        Math::Tf32 => f32::from_bits((x.to_bits() + 0x1000) & !0x1fff),
        Math::F16 => half::f16::from_f32(x).to_f32(),
        Math::Bf16 => half::bf16::from_f32(x).to_f32(),
    }
}

fn upload(values: &[f32], dtype: Type, memory: &mut Memory) -> Pointer {
    match dtype {
        Type::F16 => memory.upload(&to_f16(values)),
        Type::Bf16 => memory.upload(&values.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect::<Vec<_>>()),
        _ => memory.upload(values),
    }
}

fn download(pointer: Pointer, count: usize, dtype: Type, memory: &Memory) -> Vec<f32> {
    match dtype {
        Type::F16 => support::from_f16(&memory.download(pointer, count)),
        Type::Bf16 => {
            memory.download::<u16>(pointer, count).iter().map(|&x| half::bf16::from_bits(x).to_f32()).collect()
        }
        _ => memory.download(pointer, count),
    }
}

/// What an epilogue should do, with the bias per column.
fn finish(activation: Activation, sum: f64, residual: f64, residual_last: bool) -> f64 {
    let x = if residual_last { sum } else { sum + residual };
    let y = match activation {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::Clip { low, high } => x.clamp(f64::from(low), f64::from(high)),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::HardSigmoid { a, b } => (f64::from(a) * x + f64::from(b)).clamp(0.0, 1.0),
        Activation::HardSwish { a, b } => x * (f64::from(a) * x + f64::from(b)).clamp(0.0, 1.0),
        Activation::Swish => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)),
        Activation::LeakyRelu { a } => {
            if x < 0.0 {
                f64::from(a) * x
            } else {
                x
            }
        }
        Activation::Elu { a } => {
            if x < 0.0 {
                f64::from(a) * x.exp_m1()
            } else {
                x
            }
        }
    };
    if residual_last { y + residual } else { y }
}

const ACTIVATIONS: [Activation; 11] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Clip { low: -0.5, high: 0.75 },
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::HardSigmoid { a: 0.2, b: 0.5 },
    Activation::HardSwish { a: 1.0 / 6.0, b: 0.5 },
    Activation::Swish,
    Activation::Gelu,
    Activation::LeakyRelu { a: 0.1 },
    Activation::Elu { a: 1.5 },
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_tile_and_type_equals_three_loops(
        rows in prop_oneof![1..9_u32, 1..40_u32, Just(64), 100..140_u32],
        columns in prop_oneof![1..40_u32, Just(64), 100..140_u32],
        depth in prop_oneof![1..40_u32, Just(64), 100..200_u32],
        parts in 2..5_u32,
        batches in prop::array::uniform2(1..3_u32),
        transposed in prop::array::uniform2(any::<bool>()),
        gaps in prop::array::uniform2(0..5_u32),
        skips in prop::array::uniform2(prop::array::uniform2(any::<bool>())),
        activation in prop::sample::select(&ACTIVATIONS[..]),
        residual_last in any::<bool>(),
        plain in any::<bool>(),
        fine in any::<bool>(),
    ) {
        // Of what is fine, all can be copied as it is.
        let unit = if fine { 8 } else { 1 };
        let [columns, depth] = [columns, depth].map(|size| size.next_multiple_of(unit));
        let gaps = gaps.map(|gap| gap.next_multiple_of(unit));
        let transposed = [transposed[0] && !fine, transposed[1]];
        for math in [Math::F32, Math::Tf32, Math::F16, Math::Bf16] {
            let mut numbers = Numbers::new(u64::from(rows * columns + depth));
            let a = Operand::random(&mut numbers, [rows, depth], batches, transposed[0], gaps[0], skips[0], math);
            let b = Operand::random(&mut numbers, [depth, columns], batches, transposed[1], gaps[1], skips[1], math);
            let one = rows * columns;
            let count = (one * batches[0] * batches[1]) as usize;
            let storage = if math == Math::Tf32 { Math::F32 } else { math };
            let mut random = |count: usize| numbers.take(count).iter().map(|&x| rounded(x, storage)).collect::<Vec<f32>>();
            let residual = random(count);
            let bias = numbers.take(columns as usize);
            let mut memory = Memory::default();
            let c = memory.alloc(count * 4);
            let epilogue = Epilogue {
                scale: 0.5,
                bias: memory.upload(&bias),
                bias_scale: 2.0,
                bias_row: 0,
                bias_column: 1,
                residual: upload(&residual, math.storage(), &mut memory),
                residual_last,
                activation,
            };
            let gemm = Gemm {
                math,
                rows,
                columns,
                depth,
                batches,
                a: a.upload(math, &mut memory),
                b: b.upload(math, &mut memory),
                c: Matrix::row_major(c, columns).batched([u64::from(one * batches[1]), u64::from(one)]),
                epilogue: if plain { Epilogue::default() } else { epilogue },
            };
            let mut expected = Vec::new();
            for index in 0..count as u32 {
                let (batch, row, column) = (index / one, index % one / columns, index % columns);
                let batch = [batch / batches[1], batch % batches[1]];
                let sum: f64 = (0..depth).map(|d| a.at(batch, row, d) * b.at(batch, d, column)).sum();
                expected.push(if plain { sum } else {
                    let sum = 0.5 * sum + 2.0 * f64::from(bias[column as usize]);
                    finish(activation, sum, f64::from(residual[index as usize]), residual_last)
                });
            }
            // Sums of `depth` products below 1, then the output's own rounding.
            let rounding = match math { Math::F32 | Math::Tf32 => 0.0, Math::F16 => 1.0 / 2048.0, Math::Bf16 => 1.0 / 256.0 };
            let mut launches = gemm.launches().unwrap();
            launches.push(gemm.launch().unwrap());
            let partial = memory.alloc(4 * parts as usize * count);
            let split = gemm.split_launches(parts, partial).unwrap();
            let look = |memory: &Memory, launch: &Launch| {
                for (index, (found, expected)) in download(c, count, math.storage(), memory).iter().zip(&expected).enumerate() {
                    let tolerance = 1e-6 * f64::from(depth) + 2e-6 + rounding * expected.abs();
                    let close = (f64::from(*found) - expected).abs() <= tolerance;
                    assert!(close, "{}: element {index} is {found}, expected {expected}\n{gemm:?}", launch.kernel.name);
                }
            };
            run_all(&launches, &mut memory, look);
            run_chains(&split, &mut memory, look);
        }
    }
}

#[test]
fn a_large_product_takes_the_largest_tile_and_a_flat_one_the_flattest() {
    let gemm = |rows, columns| Gemm {
        math: Math::F32,
        rows,
        columns,
        depth: 256,
        batches: [1, 1],
        a: Matrix::row_major(Pointer(256), 256),
        b: Matrix::row_major(Pointer(256), columns),
        c: Matrix::row_major(Pointer(256), columns),
        epilogue: Epilogue::default(),
    };
    assert_eq!(gemm(4096, 4096).launch().unwrap().kernel.name, "rota_gemm_f32_128x64");
    assert_eq!(gemm(12, 1000).launch().unwrap().kernel.name, "rota_gemm_f32_16x64");
    assert_eq!(gemm(8, 1000).launch().unwrap().kernel.name, "rota_gemv_f32_wide");
    assert_eq!(gemm(100, 1000).launch().unwrap().kernel.name, "rota_gemm_f32_64x64");
}

#[test]
fn where_neither_tiles_nor_parts_of_the_depth_fill_a_gpu_the_smallest_tile_does_most() {
    // 480 filters of 196 pixels, 80 deep, as an H100 and an L4 (58 multiprocessors) take them: 32 tiles of 64x64, or 120 of 16x64.
    let gemm = Gemm {
        math: Math::F32,
        rows: 480,
        columns: 196,
        depth: 80,
        batches: [1, 1],
        a: Matrix::row_major(Pointer(256), 80),
        b: Matrix::row_major(Pointer(256), 196),
        c: Matrix::row_major(Pointer(256), 196),
        epilogue: Epilogue::default(),
    };
    for multiprocessors in [132, 58] {
        let launches = gemm.launches_on(multiprocessors, |_| panic!("no room is wanted")).unwrap();
        assert_eq!((launches[0].kernel.name, launches[0].blocks()), ("rota_gemm_f32_16x64", 120));
    }
    // 480 deep, the parts of 64x64 are the better way.
    let deep = Gemm { depth: 480, ..gemm };
    let launches = deep.launches_on(132, |_| Pointer(256)).unwrap();
    assert_eq!((launches[0].kernel.name, launches.len()), ("rota_gemm_f32_64x64", 2));
}

#[test]
fn operands_that_can_be_copied_as_they_are_take_the_tiles_that_do() {
    let gemm = |math, b_width: u32, depth: u32, address| Gemm {
        math,
        rows: 1000,
        columns: 1000,
        depth,
        batches: [1, 1],
        a: Matrix::row_major(Pointer(address), depth),
        b: Matrix::row_major(Pointer(256), b_width),
        c: Matrix::row_major(Pointer(256), 1000),
        epilogue: Epilogue::default(),
    };
    let copied = |gemm: Gemm| gemm.launch().unwrap().kernel.name.ends_with("_async");
    assert!(copied(gemm(Math::F16, 1000, 72, 256)) && copied(gemm(Math::Tf32, 1004, 68, 16)));
    assert!(!copied(gemm(Math::F32, 1000, 72, 256)), "f32 is not multiplied on tensor cores");
    assert!(!copied(gemm(Math::F16, 1004, 72, 256)), "rows that begin at 8 bytes");
    assert!(!copied(gemm(Math::F16, 1000, 68, 256)), "a depth that ends within 16 bytes");
    assert!(!copied(gemm(Math::F16, 1000, 72, 264)), "a start at 8 bytes");
    let wide = gemm(Math::F16, 1000, 72, 256);
    assert!(!copied(Gemm { a: Matrix::transposed(Pointer(256), 1000), ..wide }), "a across the depth");
    assert!(copied(Gemm { b: Matrix::transposed(Pointer(256), 72), ..wide }), "b along the depth");
}

#[test]
fn few_tiles_of_much_depth_are_split_so_that_a_gpu_is_full_and_others_are_not() {
    let gemm = |rows, columns, depth| Gemm {
        math: Math::F16,
        rows,
        columns,
        depth,
        batches: [1, 1],
        a: Matrix::row_major(Pointer(256), depth),
        b: Matrix::row_major(Pointer(512), columns),
        c: Matrix::row_major(Pointer(1024), columns),
        epilogue: Epilogue { bias: Pointer(2048), bias_column: 1, ..Epilogue::default() },
    };
    let never = |_| -> Pointer { panic!("no room is wanted") };
    for whole in [gemm(4096, 4096, 1024), gemm(512, 49, 64)] {
        assert_eq!(whole.launches_on(132, never).unwrap(), [whole.launch().unwrap()]);
    }
    let mut room = 0;
    let launches = gemm(512, 49, 4608).launches_on(132, |bytes| {
        room = bytes;
        Pointer(4096)
    });
    let [sums, end] = &launches.unwrap()[..] else { panic!("two launches") };
    let parts = u64::from(sums.grid[2]);
    assert_eq!((sums.grid, room), ([8, 1, 14], parts * 512 * 49 * 4));
    // The output lives from the second launch on, and what they cost is what a whole one does, and the sums there and back.
    assert_eq!(sums.pointers().map(|pointer| pointer.0).collect::<Vec<_>>(), [256, 512, 0, 0, 0, 4096]);
    assert_eq!(end.pointers().map(|pointer| pointer.0).collect::<Vec<_>>(), [4096, 1024, 2048, 0]);
    let whole = gemm(512, 49, 4608).launch().unwrap().cost;
    let both = sums.cost + end.cost;
    assert_eq!((both.bytes_read, both.bytes_written), (whole.bytes_read + room, whole.bytes_written + room));
    assert_eq!(both.flops, whole.flops + parts * 512 * 49);
}

#[test]
fn an_output_with_gaps_between_columns_is_refused() {
    let gemm = Gemm {
        math: Math::F16,
        rows: 2,
        columns: 2,
        depth: 2,
        batches: [1, 1],
        a: Matrix::row_major(Pointer(256), 2),
        b: Matrix::row_major(Pointer(256), 2),
        c: Matrix::transposed(Pointer(256), 2),
        epilogue: Epilogue::default(),
    };
    assert!(gemm.launch().unwrap_err().to_string().contains("side by side"));
}
