//! `grouped.cu` on the host: the same to the bit as one launch of `gemm.cu` for each problem.

mod support;

use rota_kernels::host::{Host, Memory};
use rota_kernels::{Activation, Cost, Epilogue, Gemm, Grouped, Math, Matrix, Pointer};
use support::{Numbers, to_f16};

/// Heads of one trunk: rows and columns of each; one gets no rows this time.
const HEADS: [(u32, u32); 5] = [(3, 10), (0, 7), (20, 66), (1, 2), (40, 64)];
const DEPTH: u32 = 36;

fn upload(values: &[f32], math: Math, memory: &mut Memory) -> Pointer {
    if math == Math::F16 { memory.upload(&to_f16(values)) } else { memory.upload(values) }
}

#[test]
fn every_tile_equals_one_product_after_the_other_to_the_bit() {
    let host = Host::load().unwrap();
    for math in [Math::F32, Math::Tf32, Math::F16] {
        let mut memory = Memory::default();
        let mut numbers = Numbers::new(4);
        let bytes = math.storage().bytes();
        let mut gemms = Vec::new();
        for (rows, columns) in HEADS {
            let a = upload(&numbers.take((rows * DEPTH) as usize), math, &mut memory);
            let b = upload(&numbers.take((columns * DEPTH) as usize), math, &mut memory);
            let bias = memory.upload(&numbers.take(columns as usize));
            let c = memory.upload(&vec![0_u32; (rows * columns) as usize]);
            gemms.push(Gemm {
                math,
                rows,
                columns,
                depth: DEPTH,
                batches: [1, 1],
                a: Matrix::row_major(a, DEPTH),
                b: Matrix::transposed(b, DEPTH),
                c: Matrix::row_major(c, columns),
                epilogue: Epilogue {
                    bias,
                    bias_column: 1,
                    activation: Activation::LeakyRelu { a: 0.5 },
                    ..Epilogue::default()
                },
            });
        }
        let problems: Vec<_> = gemms.iter().map(|gemm| gemm.problem().unwrap()).collect();
        let (rows_max, columns_max) = (40, 66);
        let grouped = Grouped {
            math,
            problems: memory.upload(&problems),
            count: HEADS.len() as u32,
            rows_max,
            columns_max,
            cost: Cost::default(),
        };
        let read = |gemm: &Gemm, memory: &Memory| {
            memory.download::<u8>(gemm.c.pointer, gemm.rows as usize * gemm.columns as usize * bytes as usize)
        };
        // The tiles of a grouped launch are the second and third of a product's.
        for (index, launch) in grouped.launches().unwrap().iter().enumerate() {
            host.run(launch, &mut memory).unwrap();
            let together: Vec<Vec<u8>> = gemms.iter().map(|gemm| read(gemm, &memory)).collect();
            for (gemm, together) in gemms.iter().zip(together).filter(|(gemm, _)| gemm.rows > 0) {
                host.run(&gemm.launches().unwrap()[index + 1], &mut memory).unwrap();
                assert_eq!(read(gemm, &memory), together, "{}: {} x {}", launch.kernel.name, gemm.rows, gemm.columns);
                assert!(together.iter().any(|&byte| byte != 0));
            }
        }
    }
}
