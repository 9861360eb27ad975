//! Pools, pictures at another size, and whole axes.

use super::{FLOATS, name, sum_tolerance};
use crate::gpu::Failure;
use crate::gpu::case::{Case, Maker, Planned, Scale, Tolerance, Variant};
use rota_kernels::pool::Window;
use rota_kernels::resize::{Coordinates, Filter, Table};
use rota_kernels::{Float, Math, Pool, Reduce, Reduction, Resize, Type};
use serde_json::json;

pub fn planned(scale: Scale) -> Vec<Planned> {
    let mut all = Vec::new();
    for (float, math) in FLOATS {
        for window in [Window::Max, Window::Average] {
            all.push(Planned::new(Math::F32, move |maker| pool(maker, float, math, window, scale)));
        }
        all.push(Planned::new(Math::F32, move |maker| resize(maker, float, math, scale)));
    }
    for dtype in [Type::F32, Type::F16, Type::I32, Type::I64] {
        for along_rows in [true, false] {
            all.push(Planned::new(Math::F32, move |maker| reduce(maker, dtype, along_rows, scale)));
        }
    }
    all
}

/// Windows of 3 by 3, every second pixel, one of padding.
fn pool(maker: &mut Maker, float: Float, math: Math, window: Window, scale: Scale) -> Result<Case, Failure> {
    let (planes, side) = scale.pick((8 * 64, 112), (3, 9));
    let out = (side + 2 - 3) / 2 + 1;
    let dtype = Type::from(float);
    let x = maker.tensor(planes * side * side, dtype)?;
    let output = maker.output(planes * out * out, dtype)?;
    let pool = Pool {
        dtype: float,
        planes: planes as u32,
        input: [side as u32; 2],
        output: [out as u32; 2],
        kernel: [3, 3],
        strides: [2, 2],
        dilations: [1, 1],
        pads: [1, 1],
        window,
        x: x.pointer,
        y: output.pointer,
    };
    let blocks = pool.launch()?.kernel.blocks;
    let launches = blocks.iter().map(|&block| pool.launch_with(block)).collect::<Result<_, _>>()?;
    let (side, out) = (side as usize, out as usize);
    let max = window == Window::Max;
    let expected = move |index: usize| {
        let (ox, oy, plane) = (index % out, index / out % out, index / (out * out));
        let inside = |at: usize, k: usize| (at * 2 + k).checked_sub(1).filter(|&place| place < side);
        let places = (0..9).filter_map(|k| Some((inside(oy, k / 3)?, inside(ox, k % 3)?)));
        let values: Vec<f64> = places.map(|(y, x_)| f64::from(x.values[(plane * side + y) * side + x_])).collect();
        match max {
            true => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            false => values.iter().sum::<f64>() / values.len() as f64,
        }
    };
    let op = if max { "max_pool2d" } else { "avg_pool2d" };
    Ok(Case {
        family: "pool",
        what: format!("{} {} {planes}x{side}x{side}, 3x3/2", name(math), if max { "max" } else { "average" }),
        math: Math::F32,
        variants: Variant::mark(launches, &pool.launch()?),
        output,
        expected: Box::new(expected),
        work: 9,
        tolerance: Tolerance::stored(dtype, if max { 0.0 } else { 4e-6 }),
        peer: Some(json!({ "op": op, "dtype": name(math), "planes": planes, "side": side })),
    })
}

/// Twice the size, linear between centres.
fn resize(maker: &mut Maker, float: Float, math: Math, scale: Scale) -> Result<Case, Failure> {
    let (planes, side) = scale.pick((8 * 24, 80_u32), (3, 7));
    let out = 2 * side;
    let dtype = Type::from(float);
    let table = Table::new(side, out, 2.0, Coordinates::HalfPixel, Filter::Linear);
    let x = maker.tensor(planes * u64::from(side) * u64::from(side), dtype)?;
    let output = maker.output(planes * u64::from(out) * u64::from(out), dtype)?;
    let (places, weights) = (maker.table(&table.places)?, maker.table(&table.weights)?);
    let resize = Resize {
        dtype: float,
        planes: planes as u32,
        input: [side; 2],
        output: [out; 2],
        taps: [table.taps; 2],
        x: x.pointer,
        y: output.pointer,
        places: [places; 2],
        weights: [weights; 2],
    };
    let blocks = resize.launch()?.kernel.blocks;
    let launches = blocks.iter().map(|&block| resize.launch_with(block)).collect::<Result<_, _>>()?;
    let (side, out, taps) = (side as usize, out as usize, table.taps as usize);
    let expected = move |index: usize| {
        let (ox, oy, plane) = (index % out, index / out % out, index / (out * out));
        let pairs = (0..taps).flat_map(|y| (0..taps).map(move |x| (oy * taps + y, ox * taps + x)));
        pairs
            .map(|(y, x_)| {
                let place = (plane * side + table.places[y] as usize) * side + table.places[x_] as usize;
                f64::from(table.weights[y]) * f64::from(table.weights[x_]) * f64::from(x.values[place])
            })
            .sum()
    };
    Ok(Case {
        family: "resize",
        what: format!("{} {planes}x{side}x{side} to {out}x{out}, linear", name(math)),
        math: Math::F32,
        variants: Variant::mark(launches, &resize.launch()?),
        output,
        expected: Box::new(expected),
        work: 4,
        tolerance: Tolerance::stored(dtype, 4e-6),
        peer: Some(json!({ "op": "interpolate", "dtype": name(math), "planes": planes, "side": side })),
    })
}

/// The mean along an axis, or the sum of whole numbers.
fn reduce(maker: &mut Maker, dtype: Type, along_rows: bool, scale: Scale) -> Result<Case, Failure> {
    let (outer, count, inner) = match along_rows {
        true => scale.pick((8192, 1024, 1), (5, 77, 1)),
        false => scale.pick((8, 1024, 1024), (2, 19, 33)),
    };
    let elements = outer * count * inner;
    let (values, pointer): (Vec<f64>, _) = match dtype {
        Type::I32 | Type::I64 => {
            let (values, pointer) = maker.whole(elements, 100, dtype)?;
            (values.into_iter().map(f64::from).collect(), pointer)
        }
        _ => {
            let tensor = maker.tensor(elements, dtype)?;
            (tensor.values.into_iter().map(f64::from).collect(), tensor.pointer)
        }
    };
    let whole = matches!(dtype, Type::I32 | Type::I64);
    let output = maker.output(outer * inner, dtype)?;
    let reduce = Reduce {
        dtype,
        reduction: if whole { Reduction::Sum } else { Reduction::Mean },
        last: false,
        outer: outer as u32,
        count: count as u32,
        inner: inner as u32,
        x: pointer,
        y: output.pointer,
    };
    let (rows, columns) = (count as usize, inner as usize);
    let expected = move |index: usize| {
        let start = index / columns * rows * columns + index % columns;
        let sum: f64 = (0..rows).map(|row| values[start + row * columns]).sum();
        if whole { sum } else { sum / rows as f64 }
    };
    let torch =
        ["f32", "f16", "i32", "i64"][[Type::F32, Type::F16, Type::I32].iter().position(|&t| t == dtype).unwrap_or(3)];
    Ok(Case {
        family: "reduce",
        what: format!("{torch} {outer}x{count}x{inner}, {}", if whole { "sum" } else { "mean" }),
        math: Math::F32,
        variants: Variant::mark(reduce.launches()?, &reduce.launch()?),
        output,
        expected: Box::new(expected),
        work: count,
        tolerance: if whole { Tolerance::EXACT } else { Tolerance::stored(dtype, sum_tolerance(count) / count as f64) },
        peer: Some(json!({ "op": if whole { "sum" } else { "mean" }, "dtype": torch, "dims": [outer, count, inner] })),
    })
}
