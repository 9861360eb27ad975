//! `attention.cu` on the host against three loops in f64.

mod support;

use proptest::prelude::*;
use rota_kernels::attention::{Heads, Mask};
use rota_kernels::host::Memory;
use rota_kernels::{Attention, Float, Pointer};
use support::{Numbers, Tensor, assert_close, run_all};

/// Softmax-weighted sums of values, given all scores of one row.
fn weighted(scores: &[f64], values: impl Fn(usize) -> f64) -> f64 {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().enumerate().map(|(column, weight)| weight * values(column)).sum::<f64>() / sum
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn masked_and_causal_rows_of_every_type_equal_three_loops(
        outers in 1..3_u32,
        heads in 1..3_u32,
        rows in prop_oneof![1..35_u32, 60..80_u32],
        more in 0..40_u32,
        size in prop_oneof![1..20_u32, Just(8), Just(32), Just(40), Just(64), Just(96), Just(128)],
        v_size in prop_oneof![1..20_u32, Just(8), Just(32), Just(40), Just(64), Just(96), Just(128)],
        causal in any::<bool>(),
        masked in any::<bool>(),
        dtype in prop_oneof![Just(Float::F32), Just(Float::F16)],
    ) {
        let columns = rows + more;
        let mut numbers = Numbers::new(u64::from(rows));
        let mut random = |count: u32| Tensor::random(&mut numbers, count as usize, dtype);
        // Heads lie inside of rows: [outer, row, head, size], as a projection leaves them.
        let (q, k) = (random(outers * rows * heads * size), random(outers * columns * heads * size));
        let (v, mask) = (random(outers * columns * heads * v_size), random(outers * columns));
        let strides = |rows: u32, size: u32| [rows * heads * size, size, heads * size].map(u64::from);
        let mut memory = Memory::default();
        let [qp, kp, vp, mp] = [&q, &k, &v, &mask].map(|tensor| tensor.upload(dtype, &mut memory));
        let count = (outers * rows * heads * v_size) as usize;
        let attention = Attention {
            dtype,
            outers,
            heads,
            rows,
            columns,
            size,
            v_size,
            scale: 0.5,
            causal,
            q: Heads { pointer: qp, strides: strides(rows, size) },
            k: Heads { pointer: kp, strides: strides(columns, size) },
            v: Heads { pointer: vp, strides: strides(columns, v_size) },
            y: Heads { pointer: memory.alloc(count * 4), strides: strides(rows, v_size) },
            mask: Mask { pointer: if masked { mp } else { Pointer::NONE }, strides: [u64::from(columns), 0, 0, 1] },
        };
        let at = |tensor: &Tensor, strides: [u64; 3], o: u32, h: u32, row: u32, column: u32| {
            f64::from(tensor.values()[(u64::from(o) * strides[0] + u64::from(h) * strides[1] + u64::from(row) * strides[2]) as usize + column as usize])
        };
        let mut expected = vec![0.0; count];
        for (o, h, r) in (0..outers).flat_map(|o| (0..heads).flat_map(move |h| (0..rows).map(move |r| (o, h, r)))) {
            let visible = if causal { r + columns - rows + 1 } else { columns };
            let scores: Vec<f64> = (0..visible).map(|c| {
                let dot: f64 = (0..size).map(|d| at(&q, attention.q.strides, o, h, r, d) * at(&k, attention.k.strides, o, h, c, d)).sum();
                0.5 * dot + if masked { f64::from(mask.values()[(o * columns + c) as usize]) } else { 0.0 }
            }).collect();
            for d in 0..v_size {
                let value = weighted(&scores, |c| at(&v, attention.v.strides, o, h, c as u32, d));
                expected[(((o * rows + r) * heads + h) * v_size + d) as usize] = value as f32;
            }
        }
        prop_assert_eq!(Some(attention.launch().unwrap()), attention.launches().unwrap().pop());
        run_all(&attention.launches().unwrap(), &mut memory, |memory, _| {
            let tolerance = if dtype == Float::F32 { 2e-5 } else { 4e-3 };
            assert_close(&Tensor::download(dtype, memory, attention.y.pointer, count), &expected, tolerance, &format!("{attention:?}"));
        });
    }
}

#[test]
fn heads_that_can_be_copied_as_they_are_go_to_tensor_cores() {
    let attention = |dtype, size: u32, address: u64| {
        let heads =
            Heads { pointer: Pointer(address), strides: [u64::from(size) * 40, u64::from(size), u64::from(size)] };
        let mask = Mask { pointer: Pointer::NONE, strides: [0; 4] };
        let (q, k, v, y) = (heads, heads, heads, heads);
        let (outers, heads, rows, columns) = (1, 1, 40, 40);
        Attention {
            dtype,
            outers,
            heads,
            rows,
            columns,
            size,
            v_size: size,
            scale: 1.0,
            causal: false,
            q,
            k,
            v,
            y,
            mask,
        }
    };
    let name = |attention: Attention| attention.launch().unwrap().kernel.name;
    assert_eq!(name(attention(Float::F16, 32, 256)), "rota_attention_f16_mma_32");
    assert_eq!(name(attention(Float::F16, 40, 256)), "rota_attention_f16_mma_64");
    assert_eq!(name(attention(Float::F16, 128, 256)), "rota_attention_f16_mma_128");
    assert_eq!(name(attention(Float::F16, 15, 256)), "rota_attention_f16");
    assert_eq!(name(attention(Float::F16, 32, 264)), "rota_attention_f16");
    assert_eq!(name(attention(Float::F32, 32, 256)), "rota_attention_f32");
}
