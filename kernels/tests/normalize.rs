//! `normalize.cu` on the host against sums in f64.

mod support;

use proptest::prelude::*;
use rota_kernels::host::Memory;
use rota_kernels::{Affine, Float, Normalize, Pointer};
use support::{Numbers, Tensor, assert_close, run_all};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_affine_block_and_type_equals_plain_sums(
        pictures in 1..4_u32,
        groups in 1..4_u32,
        channels in 1..4_u32,
        pixels in 1..200_u32,
        kind in 0..3,
        root_mean_square in any::<bool>(),
        adds in any::<bool>(),
        plain in any::<bool>(),
        dtype in prop_oneof![Just(Float::F32), Just(Float::F16)],
    ) {
        // Pictures of groups * channels * pixels elements, cut into rows in three ways.
        let (affine, rows, columns, factors) = match kind {
            0 => (Affine::PerColumn, pictures * groups * channels, pixels, pixels),
            1 => (Affine::PerChannel { channels: groups * channels }, pictures * groups * channels, pixels, groups * channels),
            _ => (Affine::PerGroup { groups, channels }, pictures * groups, channels * pixels, groups * channels),
        };
        let mut numbers = Numbers::new(u64::from(pixels));
        let mut random = |count: u32| Tensor::random(&mut numbers, count as usize, dtype);
        let (x, residual, gamma, beta) = (random(rows * columns), random(rows * columns), random(factors), random(factors));
        let mut memory = Memory::default();
        let pointers = [&x, &residual, &gamma, &beta].map(|tensor| tensor.upload(dtype, &mut memory));
        let epsilon = 1e-3;
        let normalize = Normalize {
            dtype,
            rows,
            columns,
            affine,
            epsilon,
            root_mean_square,
            x: pointers[0],
            residual: if adds { pointers[1] } else { Pointer::NONE },
            gamma: if plain { Pointer::NONE } else { pointers[2] },
            beta: if plain { Pointer::NONE } else { pointers[3] },
            y: memory.alloc(x.len() * 4),
        };
        let mut expected = Vec::new();
        for row in 0..rows {
            let values: Vec<f64> = (0..columns).map(|c| {
                let place = (row * columns + c) as usize;
                f64::from(x.values()[place]) + if adds { f64::from(residual.values()[place]) } else { 0.0 }
            }).collect();
            let mean = if root_mean_square { 0.0 } else { values.iter().sum::<f64>() / f64::from(columns) };
            let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(columns);
            for (c, value) in values.iter().enumerate() {
                let factor = match affine {
                    Affine::PerColumn => c,
                    Affine::PerChannel { channels } => (row % channels) as usize,
                    Affine::PerGroup { .. } => (row % groups * channels) as usize + c / pixels as usize,
                };
                let (gamma, beta) = if plain { (1.0, 0.0) } else { (gamma.values()[factor], beta.values()[factor]) };
                expected.push(((value - mean) / (variance + f64::from(epsilon)).sqrt() * f64::from(gamma) + f64::from(beta)) as f32);
            }
        }
        let mut launches: Vec<_> = [32, 64, 128, 256].map(|threads| normalize.launch_with(threads).unwrap()).to_vec();
        launches.push(normalize.launch().unwrap());
        run_all(&launches, &mut memory, |memory, launch| {
            let tolerance = if dtype == Float::F32 { 2e-5 } else { 8e-3 };
            assert_close(&Tensor::download(dtype, memory, normalize.y, expected.len()), &expected, tolerance, &format!("{launch:?}"));
        });
    }
}
