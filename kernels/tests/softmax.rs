//! `softmax.cu` on the host against its formula.

mod support;

use rota_kernels::host::{Host, Memory};
use rota_kernels::{Float, Pointer, Softmax};
use support::{Numbers, assert_close, from_f16, to_f16};

#[test]
fn every_block_and_type_equals_the_formula_at_odd_shapes() {
    for (outer, columns, inner) in [(1, 1, 1), (5, 10, 1), (3, 33, 1), (2, 7, 3), (1, 300, 2)] {
        let x: Vec<f32> = Numbers::new(columns as u64).take(outer * columns * inner).iter().map(|x| x * 9.0).collect();
        for log in [false, true] {
            check(outer, columns, inner, log, &x);
        }
    }
}

fn check(outer: usize, columns: usize, inner: usize, log: bool, x: &[f32]) {
    let host = Host::load().unwrap();
    for dtype in [Float::F32, Float::F16] {
        let x: Vec<f32> = if dtype == Float::F16 { from_f16(&to_f16(x)) } else { x.to_vec() };
        let expected = reference(outer, columns, inner, log, &x);
        let mut memory = Memory::default();
        let input = if dtype == Float::F16 { memory.upload(&to_f16(&x)) } else { memory.upload(&x) };
        let y = memory.alloc(x.len() * 4);
        let [outer, columns, inner] = [outer, columns, inner].map(|n| n as u32);
        let softmax = Softmax { dtype, outer, columns, inner, log, x: input, y };
        for launch in softmax.launches().unwrap() {
            host.run(&launch, &mut memory).unwrap();
            let what = format!("{launch:?}");
            match dtype {
                Float::F32 => assert_close(&memory.download(y, x.len()), &expected, 4e-6, &what),
                Float::F16 => assert_close(&from_f16(&memory.download::<u16>(y, x.len())), &expected, 8e-3, &what),
            }
        }
    }
}

#[test]
fn a_few_long_rows_have_a_block_each_and_many_rows_or_short_ones_a_warp() {
    let kernel = |outer, columns| {
        let (x, y) = (Pointer(256), Pointer(256));
        Softmax { dtype: Float::F32, outer, columns, inner: 1, log: false, x, y }.launch().unwrap().kernel.name
    };
    assert_eq!(kernel(40, 6625), "rota_softmax_long_f32");
    assert_eq!(kernel(4000, 6625), "rota_softmax_f32");
    assert_eq!(kernel(40, 1000), "rota_softmax_f32");
}

fn reference(outer: usize, columns: usize, inner: usize, log: bool, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        let at = |c: usize| (o * columns + c) * inner + i;
        let largest = (0..columns).map(|c| x[at(c)]).fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = (0..columns).map(|c| f64::from(x[at(c)] - largest).exp()).sum();
        for c in 0..columns {
            let value = f64::from(x[at(c)] - largest) - sum.ln();
            y[at(c)] = if log { value } else { value.exp() } as f32;
        }
    }
    y
}
