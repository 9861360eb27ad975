//! `gemm.cu` on the host against three loops.

mod support;

use rota_kernels::host::{Host, Memory};
use rota_kernels::{Activation, Epilogue, Gemm, Matrix, Pointer};
use support::{Numbers, assert_close};

#[test]
fn every_tile_equals_three_loops_at_odd_shapes() {
    let host = Host::load().unwrap();
    for (case, (rows, columns, depth)) in
        [(1, 1, 1), (3, 5, 7), (17, 65, 33), (130, 66, 20), (64, 128, 64)].into_iter().enumerate()
    {
        for transposed in [false, true] {
            let mut numbers = Numbers::new(case as u64);
            let (a, b, bias) = (numbers.take(rows * depth), numbers.take(depth * columns), numbers.take(columns));
            let mut memory = Memory::default();
            let c = memory.alloc(rows * columns * 4);
            let a_matrix = Matrix::row_major(memory.upload(&a), depth as u32);
            let b_pointer = memory.upload(&b);
            let b_matrix = if transposed {
                Matrix::transposed(b_pointer, depth as u32)
            } else {
                Matrix::row_major(b_pointer, columns as u32)
            };
            let epilogue = Epilogue {
                bias: memory.upload(&bias),
                bias_column: 1,
                activation: Activation::Relu,
                residual: Pointer::NONE,
                ..Epilogue::default()
            };
            let gemm = Gemm {
                rows: rows as u32,
                columns: columns as u32,
                depth: depth as u32,
                batches: [1, 1],
                a: a_matrix,
                b: b_matrix,
                c: Matrix::row_major(c, columns as u32),
                epilogue,
            };
            let mut expected = Vec::new();
            for row in 0..rows {
                for column in 0..columns {
                    let b_at = |d: usize| if transposed { b[column * depth + d] } else { b[d * columns + column] };
                    let sum: f32 = (0..depth).map(|d| a[row * depth + d] * b_at(d)).sum();
                    expected.push((sum + bias[column]).max(0.0));
                }
            }
            for launch in gemm.launches().unwrap() {
                host.run(&launch, &mut memory).unwrap();
                assert_close(&memory.download::<f32>(c, rows * columns), &expected, 1e-4, launch.kernel.name);
            }
        }
    }
}
