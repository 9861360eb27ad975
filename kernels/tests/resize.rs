//! `resize.cu` and its tables on the host against ONNX's formulas.

mod support;

use proptest::prelude::*;
use rota_kernels::host::Memory;
use rota_kernels::resize::{Coordinates, Filter, Rounding, Table};
use rota_kernels::{Float, Resize};
use support::{Numbers, Tensor, assert_close, run_all};

#[test]
fn tables_have_the_values_of_onnx_examples() {
    let nearest = |rounding| Filter::Nearest(rounding);
    let table = |filter, coordinates, input, output| {
        Table::new(input, output, output as f32 / input as f32, coordinates, filter)
    };
    let cases = [
        (table(nearest(Rounding::Floor), Coordinates::Asymmetric, 2, 4).places, vec![0, 0, 1, 1]),
        (table(nearest(Rounding::PreferFloor), Coordinates::HalfPixel, 2, 6).places, vec![0, 0, 0, 1, 1, 1]),
        (table(nearest(Rounding::Ceil), Coordinates::HalfPixel, 4, 8).places, vec![0, 1, 1, 2, 2, 3, 3, 3]),
        (table(nearest(Rounding::PreferCeil), Coordinates::Asymmetric, 4, 2).places, vec![0, 2]),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
    // ONNX's resize_upsample_scales_linear: [1, 2] becomes [1, 1.25, 1.75, 2].
    let linear = table(Filter::Linear, Coordinates::HalfPixel, 2, 4);
    let values: Vec<f32> = (0..4).map(|o| weighted(&linear, o, &[1.0, 2.0])).collect();
    assert_close(&values, &[1.0, 1.25, 1.75, 2.0], 1e-6, "half_pixel");
    let aligned = table(Filter::Linear, Coordinates::AlignCorners, 2, 4);
    let values: Vec<f32> = (0..4).map(|o| weighted(&aligned, o, &[1.0, 2.0])).collect();
    assert_close(&values, &[1.0, 4.0 / 3.0, 5.0 / 3.0, 2.0], 1e-6, "align_corners");
}

#[test]
fn weights_of_every_filter_sum_to_one() {
    for filter in [
        Filter::Nearest(Rounding::Floor),
        Filter::Linear,
        Filter::Cubic { coefficient: -0.75, exclude_outside: false },
        Filter::Cubic { coefficient: -0.5, exclude_outside: true },
    ] {
        for coordinates in [
            Coordinates::HalfPixel,
            Coordinates::HalfPixelSymmetric,
            Coordinates::PytorchHalfPixel,
            Coordinates::Asymmetric,
            Coordinates::AlignCorners,
        ] {
            for (input, output) in [(1, 1), (1, 7), (5, 1), (7, 3), (3, 8)] {
                let table = Table::new(input, output, output as f32 / input as f32, coordinates, filter);
                for o in 0..output {
                    let sum = weighted(&table, o, &vec![1.0; input as usize]);
                    assert!((sum - 1.0).abs() < 1e-5, "{filter:?} {coordinates:?} {input} to {output}: {sum}");
                }
            }
        }
    }
}

fn weighted(table: &Table, output: u32, x: &[f32]) -> f32 {
    let taps = (output * table.taps) as usize..((output + 1) * table.taps) as usize;
    taps.map(|tap| table.weights[tap] * x[table.places[tap] as usize]).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn pictures_are_the_weighted_sums_that_the_tables_say(
        planes in 1..4_u32,
        inner in prop_oneof![Just(1_u32), 2..5_u32],
        input in prop::array::uniform2(1..9_u32),
        output in prop::array::uniform2(1..13_u32),
        cubic in any::<bool>(),
        dtype in prop_oneof![Just(Float::F32), Just(Float::F16)],
    ) {
        let filter = if cubic { Filter::Cubic { coefficient: -0.75, exclude_outside: false } } else { Filter::Linear };
        let tables = [0, 1].map(|a| Table::new(input[a], output[a], output[a] as f32 / input[a] as f32, Coordinates::HalfPixel, filter));
        let x = Tensor::random(&mut Numbers::new(3), (planes * input[0] * input[1] * inner) as usize, dtype);
        let mut memory = Memory::default();
        let count = (planes * output[0] * output[1] * inner) as usize;
        let resize = Resize {
            dtype,
            planes,
            inner,
            input,
            output,
            taps: tables.each_ref().map(|table| table.taps),
            x: x.upload(dtype, &mut memory),
            y: memory.alloc(count * 4),
            places: tables.each_ref().map(|table| memory.upload(&table.places)),
            weights: tables.each_ref().map(|table| memory.upload(&table.weights)),
        };
        let mut expected = Vec::new();
        for plane in x.values().chunks((input[0] * input[1] * inner) as usize) {
            let picture = |i: u32| plane.iter().skip(i as usize).step_by(inner as usize).copied().collect::<Vec<f32>>();
            let pictures: Vec<Vec<f32>> = (0..inner).map(picture).collect();
            for (oy, ox, i) in (0..output[0]).flat_map(|y| (0..output[1]).flat_map(move |x| (0..inner).map(move |i| (y, x, i)))) {
                let rows = pictures[i as usize].chunks(input[1] as usize);
                let across: Vec<f32> = rows.map(|row| weighted(&tables[1], ox, row)).collect();
                expected.push(weighted(&tables[0], oy, &across));
            }
        }
        let launches = [64, 128, 256].map(|threads| resize.launch_with(threads).unwrap());
        run_all(&launches, &mut memory, |memory, launch| {
            let tolerance = if dtype == Float::F32 { 1e-5 } else { 2e-3 };
            assert_close(&Tensor::download(dtype, memory, resize.y, count), &expected, tolerance, launch.kernel.name);
        });
    }
}
