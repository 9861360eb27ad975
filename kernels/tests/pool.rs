//! `pool.cu` and `reduce.cu` on the host against plain loops.

mod support;

use proptest::prelude::*;
use rota_kernels::host::{Host, Memory};
use rota_kernels::{Float, Pool, Reduce, Reduction, Type, Window};
use support::{Numbers, Tensor, assert_close, run_all};

fn window_of(pool: &Pool, x: &[f32], plane: u32, oy: u32, ox: u32) -> f32 {
    let (mut largest, mut sum, mut inside, mut padded) = (f32::NEG_INFINITY, 0.0, 0, 0);
    for (ky, kx) in (0..pool.kernel[0]).flat_map(|y| (0..pool.kernel[1]).map(move |x| (y, x))) {
        let at = [(oy, ky), (ox, kx)];
        let place: Vec<i32> =
            (0..2).map(|a| (at[a].0 * pool.strides[a] + at[a].1 * pool.dilations[a]) as i32 - pool.pads[a]).collect();
        if (0..2).all(|a| (0..pool.input[a] as i32).contains(&place[a])) {
            let value = x[((plane * pool.input[0] + place[0] as u32) * pool.input[1] + place[1] as u32) as usize];
            largest = largest.max(value);
            sum += value;
            inside += 1;
        }
        if let Window::AverageWithPadding(behind) = pool.window {
            padded += i32::from((0..2).all(|a| place[a] < (pool.input[a] + behind[a]) as i32));
        }
    }
    match pool.window {
        Window::Max => largest,
        Window::Average => sum / inside as f32,
        Window::AverageWithPadding(_) => sum / padded as f32,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn every_window_equals_plain_loops(
        planes in 1..5_u32,
        input in prop::array::uniform2(1..14_u32),
        kernel in prop::array::uniform2(1..5_u32),
        strides in prop::array::uniform2(1..4_u32),
        dilations in prop::array::uniform2(1..3_u32),
        pads in prop::array::uniform2(0..3_i32),
        behind in prop::array::uniform2(0..3_u32),
        ceil in any::<bool>(),
        dtype in prop_oneof![Just(Float::F32), Just(Float::F16)],
    ) {
        // At least one tap of each window has to be inside, as ONNX's rules for shapes see to.
        let pads = [0, 1].map(|a| pads[a].min(kernel[a] as i32 - 1).min(if dilations[a] > 1 { 0 } else { 9 }));
        let behind = [0, 1].map(|a| behind[a].min(kernel[a] - 1));
        let output = [0, 1].map(|a| {
            let reach = (kernel[a] - 1) * dilations[a] + 1;
            let rest = (input[a] + pads[a] as u32 + behind[a]).checked_sub(reach)?;
            let size = if ceil { rest.div_ceil(strides[a]) } else { rest / strides[a] } + 1;
            Some(size - u32::from((size - 1) * strides[a] >= input[a] + pads[a] as u32))
        });
        let [Some(oh), Some(ow)] = output else { return Ok(()) };
        let mut numbers = Numbers::new(7);
        let x = Tensor::random(&mut numbers, (planes * input[0] * input[1]) as usize, dtype);
        for window in [Window::Max, Window::Average, Window::AverageWithPadding(behind)] {
            let mut memory = Memory::default();
            let count = (planes * oh * ow) as usize;
            let pointer = x.upload(dtype, &mut memory);
            let y = memory.alloc(count * 4);
            let pool = Pool { dtype, planes, input, output: [oh, ow], kernel, strides, dilations, pads, window, x: pointer, y };
            let places = (0..planes).flat_map(|p| (0..oh).flat_map(move |y| (0..ow).map(move |x| (p, y, x))));
            let expected: Vec<f32> = places.map(|(p, y, x_)| window_of(&pool, x.values(), p, y, x_)).collect();
            let launches = [64, 128, 256].map(|threads| pool.launch_with(threads).unwrap());
            run_all(&launches, &mut memory, |memory, _| {
                let tolerance = if dtype == Float::F32 { 1e-6 } else { 1e-3 };
                assert_close(&Tensor::download(dtype, memory, y, count), &expected, tolerance, &format!("{pool:?}"));
            });
        }
    }

    #[test]
    fn every_reduction_equals_plain_loops(outer in 1..6_u32, count in 1..80_u32, inner in 1..6_u32, last in any::<bool>()) {
        let total = (outer * count * inner) as usize;
        let values: Vec<f32> = Numbers::new(u64::from(count)).take(total).iter().map(|x| (x * 8.0).round() / 4.0 + 2.5).collect();
        for dtype in [Type::F32, Type::F16, Type::I32, Type::I64] {
            let values: Vec<f32> = if matches!(dtype, Type::I32 | Type::I64) { values.iter().map(|x| x.trunc()).collect() } else { values.clone() };
            let mut memory = Memory::default();
            let x = match dtype {
                Type::F32 => memory.upload(&values),
                Type::F16 => memory.upload(&support::to_f16(&values)),
                Type::I32 => memory.upload(&values.iter().map(|&x| x as i32).collect::<Vec<_>>()),
                _ => memory.upload(&values.iter().map(|&x| x as i64).collect::<Vec<_>>()),
            };
            let y = memory.alloc((outer * inner * 8) as usize);
            for reduction in REDUCTIONS {
                let reduce = Reduce { dtype, reduction, last, outer, count, inner, x, y };
                let integers = matches!(dtype, Type::I32 | Type::I64);
                if integers && matches!(reduction, Reduction::L2 | Reduction::LogSum | Reduction::LogSumExp) {
                    assert!(reduce.launch().is_err());
                    continue;
                }
                if reduction == Reduction::Product && (integers || dtype == Type::F16) && count > 8 {
                    continue; // leaves what the type can hold
                }
                let expected: Vec<f64> = (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))).map(|(o, i)| {
                    let axis: Vec<f64> = (0..count).map(|c| f64::from(values[((o * count + c) * inner + i) as usize])).collect();
                    let value = reduced(reduction, last, &axis);
                    if integers { value.trunc() } else { value }
                }).collect();
                for launch in reduce.launches().unwrap() {
                    Host::load().unwrap().run(&launch, &mut memory).unwrap();
                    let outputs = expected.len();
                    let found: Vec<f64> = match (reduction, dtype) {
                        (Reduction::ArgMax | Reduction::ArgMin, _) | (_, Type::I64) => memory.download::<i64>(y, outputs).iter().map(|&x| x as f64).collect(),
                        (_, Type::I32) => memory.download::<i32>(y, outputs).iter().map(|&x| f64::from(x)).collect(),
                        (_, Type::F16) => support::from_f16(&memory.download::<u16>(y, outputs)).iter().map(|&x| f64::from(x)).collect(),
                        _ => memory.download::<f32>(y, outputs).iter().map(|&x| f64::from(x)).collect(),
                    };
                    let relative = if dtype == Type::F16 { 1e-3 } else { 1e-5 };
                    for (found, expected) in found.iter().zip(&expected) {
                        prop_assert!((found - expected).abs() <= relative * expected.abs().max(1e-3), "{reduce:?}: {found}, expected {expected}");
                    }
                }
            }
        }
    }
}

const REDUCTIONS: [Reduction; 12] = [
    Reduction::Sum,
    Reduction::Mean,
    Reduction::Max,
    Reduction::Min,
    Reduction::Product,
    Reduction::SumSquare,
    Reduction::L1,
    Reduction::L2,
    Reduction::LogSum,
    Reduction::LogSumExp,
    Reduction::ArgMax,
    Reduction::ArgMin,
];

fn reduced(reduction: Reduction, last: bool, axis: &[f64]) -> f64 {
    let sum = |f: fn(f64) -> f64| axis.iter().map(|&x| f(x)).sum::<f64>();
    let largest = axis.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = axis.iter().copied().fold(f64::INFINITY, f64::min);
    let place = |value: f64| {
        let at = |x: &f64| *x == value;
        if last { axis.iter().rposition(at) } else { axis.iter().position(at) }.unwrap() as f64
    };
    match reduction {
        Reduction::Sum => sum(|x| x),
        Reduction::Mean => sum(|x| x) / axis.len() as f64,
        Reduction::Max => largest,
        Reduction::Min => least,
        Reduction::Product => axis.iter().product(),
        Reduction::SumSquare => sum(|x| x * x),
        Reduction::L1 => sum(f64::abs),
        Reduction::L2 => sum(|x| x * x).sqrt(),
        Reduction::LogSum => sum(|x| x).ln(),
        Reduction::LogSumExp => sum(f64::exp).ln(),
        Reduction::ArgMax => place(largest),
        Reduction::ArgMin => place(least),
    }
}
