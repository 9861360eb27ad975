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
            let bias = upload(&numbers.take(columns as usize), math, &mut memory);
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

/// What a stack multiplies: `members` heads' weights side by side, or a batch of products, each asked about some of the rows.
#[test]
fn a_product_split_by_member_computes_the_rows_that_are_asked_for_and_leaves_the_others() {
    const MEMBERS: u32 = 3;
    const WIDTH: u32 = 10;
    const ROWS: u32 = 9;
    /// First row and how many, by member.
    const ASKED: [(u32, u32); 3] = [(0, 4), (4, 0), (3, 6)];
    const BEFORE: f32 = 77.0;
    let host = Host::load().unwrap();
    for batched in [false, true] {
        let mut memory = Memory::default();
        let mut numbers = Numbers::new(6);
        let a = upload(&numbers.take((MEMBERS * ROWS * DEPTH) as usize), Math::F32, &mut memory);
        let b = upload(&numbers.take((MEMBERS * WIDTH * DEPTH) as usize), Math::F32, &mut memory);
        let bias = upload(&numbers.take((MEMBERS * WIDTH) as usize), Math::F32, &mut memory);
        let residual = upload(&numbers.take((MEMBERS * WIDTH * ROWS) as usize), Math::F32, &mut memory);
        let [whole, apart] = [0; 2].map(|_| memory.upload(&vec![BEFORE; (MEMBERS * WIDTH * ROWS) as usize]));
        let gemm = |c: Pointer| {
            let side_by_side = Gemm {
                math: Math::F32,
                rows: ROWS,
                columns: MEMBERS * WIDTH,
                depth: DEPTH,
                batches: [1, 1],
                a: Matrix::row_major(a, DEPTH),
                b: Matrix::row_major(b, MEMBERS * WIDTH),
                c: Matrix::row_major(c, MEMBERS * WIDTH),
                epilogue: Epilogue { bias, bias_column: 1, residual, ..Epilogue::default() },
            };
            let each = |rows: u32, columns: u32| [0, u64::from(rows * columns)];
            let batch = Gemm {
                columns: WIDTH,
                batches: [1, MEMBERS],
                a: side_by_side.a.batched(each(ROWS, DEPTH)),
                b: Matrix::row_major(b, WIDTH).batched(each(DEPTH, WIDTH)),
                c: Matrix::row_major(c, WIDTH).batched(each(ROWS, WIDTH)),
                epilogue: Epilogue { residual, ..Epilogue::default() },
                ..side_by_side
            };
            if batched { batch } else { side_by_side }
        };
        let problems: Vec<_> = gemm(apart).split(MEMBERS).unwrap().iter().map(|gemm| gemm.problem().unwrap()).collect();
        let asked: Vec<_> =
            problems.iter().zip(ASKED).map(|(problem, (first, count))| problem.of_rows(first, count, 4)).collect();
        let grouped = Grouped {
            math: Math::F32,
            problems: memory.upload(&asked),
            count: MEMBERS,
            rows_max: ROWS,
            columns_max: WIDTH,
            cost: gemm(apart).cost(),
        };
        host.run(&grouped.launch().unwrap(), &mut memory).unwrap();
        host.run(&gemm(whole).launch().unwrap(), &mut memory).unwrap();
        let read = |at: Pointer| memory.download::<f32>(at, (MEMBERS * WIDTH * ROWS) as usize);
        let (whole, apart) = (read(whole), read(apart));
        for (member, (first, count)) in ASKED.into_iter().enumerate() {
            for (row, column) in (0..ROWS).flat_map(|row| (0..WIDTH).map(move |column| (row, column))) {
                let member = member as u32;
                let at = match batched {
                    true => (member * ROWS + row) * WIDTH + column,
                    false => row * MEMBERS * WIDTH + member * WIDTH + column,
                } as usize;
                match (first..first + count).contains(&row) {
                    true => {
                        assert!((apart[at] - whole[at]).abs() < 1e-5, "member {member}, row {row}, column {column}")
                    }
                    false => assert_eq!(apart[at], BEFORE, "member {member}, row {row}, column {column}"),
                }
            }
        }
        assert!(gemm(Pointer::NONE).split(MEMBERS + 1).is_none() || !batched);
    }
}
