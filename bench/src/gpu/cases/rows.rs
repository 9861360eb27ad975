//! What looks at a row as a whole: softmax, normalisation, attention.

use super::{FLOATS, name, tolerance_of};
use crate::gpu::Failure;
use crate::gpu::case::{Case, Maker, Planned, Scale, Tolerance, Variant};
use rota_kernels::attention::{Heads, Mask};
use rota_kernels::{Affine, Attention, Float, Math, Normalize, Pointer, Softmax, Type};
use serde_json::json;

pub fn planned(scale: Scale) -> Vec<Planned> {
    let mut all = Vec::new();
    for (float, math) in FLOATS {
        let shapes: &[[u64; 2]] = scale.pick(&[[8192, 1024], [8, 1000]], &[[5, 33], [2, 1100]]);
        for &shape in shapes {
            all.push(Planned::new(Math::F32, move |maker| softmax(maker, float, math, shape)));
        }
        all.push(Planned::new(Math::F32, move |maker| normalize(maker, float, math, scale.pick([8192, 768], [4, 35]))));
        let shapes: &[[u64; 4]] = scale.pick(
            &[[8, 12, 128, 32], [8, 12, 128, 64], [1, 8, 1024, 128]],
            &[[1, 2, 19, 20], [1, 1, 70, 32], [1, 1, 19, 64], [1, 1, 19, 128]],
        );
        for &shape in shapes {
            all.push(Planned::new(math, move |maker| attention(maker, float, math, shape)));
        }
    }
    all
}

fn softmax(maker: &mut Maker, float: Float, math: Math, [rows, columns]: [u64; 2]) -> Result<Case, Failure> {
    let dtype = Type::from(float);
    let x = maker.tensor(rows * columns, dtype)?;
    let output = maker.output(rows * columns, dtype)?;
    let softmax = Softmax {
        dtype: float,
        outer: rows as u32,
        columns: columns as u32,
        inner: 1,
        log: false,
        x: x.pointer,
        y: output.pointer,
    };
    let width = columns as usize;
    Ok(Case {
        family: "softmax",
        what: format!("{} {rows}x{columns}", name(math)),
        math: Math::F32,
        variants: Variant::mark(softmax.launches()?, &softmax.launch()?),
        output,
        expected: Box::new(move |index| {
            let row = &x.values[index / width * width..][..width];
            f64::from(x.values[index]).exp() / row.iter().map(|&x| f64::from(x).exp()).sum::<f64>()
        }),
        work: columns * 8,
        tolerance: Tolerance::stored(dtype, 1e-6),
        peer: Some(json!({ "op": "softmax", "dtype": name(math), "rows": rows, "columns": columns })),
    })
}

/// Layer normalisation.
fn normalize(maker: &mut Maker, float: Float, math: Math, [rows, columns]: [u64; 2]) -> Result<Case, Failure> {
    let dtype = Type::from(float);
    let x = maker.tensor(rows * columns, dtype)?;
    let (gamma, beta) = (maker.tensor(columns, dtype)?, maker.tensor(columns, dtype)?);
    let output = maker.output(rows * columns, dtype)?;
    let normalize = Normalize {
        dtype: float,
        rows: rows as u32,
        columns: columns as u32,
        affine: Affine::PerColumn,
        epsilon: 1e-5,
        root_mean_square: false,
        x: x.pointer,
        residual: Pointer::NONE,
        gamma: gamma.pointer,
        beta: beta.pointer,
        y: output.pointer,
    };
    let blocks = normalize.launch()?.kernel.blocks;
    let launches = blocks.iter().map(|&block| normalize.launch_with(block)).collect::<Result<_, _>>()?;
    let width = columns as usize;
    let expected = move |index: usize| {
        let row = &x.values[index / width * width..][..width];
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64;
        let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / width as f64;
        let [gamma, beta] = [&gamma, &beta].map(|tensor| f64::from(tensor.values[index % width]));
        (f64::from(x.values[index]) - mean) / (variance + 1e-5).sqrt() * gamma + beta
    };
    Ok(Case {
        family: "normalize",
        what: format!("{} {rows}x{columns}", name(math)),
        math: Math::F32,
        variants: Variant::mark(launches, &normalize.launch()?),
        output,
        expected: Box::new(expected),
        work: columns * 4,
        tolerance: Tolerance::stored(dtype, tolerance_of(dtype)),
        peer: Some(json!({ "op": "layer_norm", "dtype": name(math), "rows": rows, "columns": columns })),
    })
}

/// Items, heads, rows of queries as of keys, columns of a head; [item, head, row, column] in memory.
fn attention(maker: &mut Maker, float: Float, math: Math, dims: [u64; 4]) -> Result<Case, Failure> {
    let dtype = Type::from(float);
    let [outers, heads, rows, size] = dims;
    let count = dims.iter().product();
    let [q, k, v] = [maker.tensor(count, dtype)?, maker.tensor(count, dtype)?, maker.tensor(count, dtype)?];
    let output = maker.output(count, dtype)?;
    let strides = [heads * rows * size, rows * size, size];
    let lie = |pointer: Pointer| Heads { pointer, strides };
    let scale = 1.0 / (size as f32).sqrt();
    let attention = Attention {
        dtype: float,
        outers: outers as u32,
        heads: heads as u32,
        rows: rows as u32,
        columns: rows as u32,
        size: size as u32,
        v_size: size as u32,
        scale,
        causal: false,
        q: lie(q.pointer),
        k: lie(k.pointer),
        v: lie(v.pointer),
        y: lie(output.pointer),
        mask: Mask { pointer: Pointer::NONE, strides: [0; 4] },
    };
    let (height, width) = (rows as usize, size as usize);
    let expected = move |index: usize| {
        let (column, row, pair) = (index % width, index / width % height, index / (width * height));
        let line = |values: &[f32], row: usize| -> Vec<f64> {
            values[(pair * height + row) * width..][..width].iter().map(|&x| f64::from(x)).collect()
        };
        let query = line(&q.values, row);
        let (mut sum, mut weights) = (0.0, 0.0);
        for key in 0..height {
            let score: f64 = query.iter().zip(line(&k.values, key)).map(|(q, k)| q * k).sum();
            let weight = (score * f64::from(scale)).exp();
            sum += weight * f64::from(v.values[(pair * height + key) * width + column]);
            weights += weight;
        }
        sum / weights
    };
    Ok(Case {
        family: "attention",
        what: format!("{} {outers}x{heads}x{rows}x{size}", name(math)),
        math: Math::F32,
        variants: Variant::mark(attention.launches()?, &attention.launch()?),
        output,
        expected: Box::new(expected),
        work: 4 * rows * size,
        tolerance: Tolerance::stored(dtype, tolerance_of(dtype)),
        peer: Some(json!({ "op": "attention", "dtype": name(math), "dims": dims })),
    })
}
