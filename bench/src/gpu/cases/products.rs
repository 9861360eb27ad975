//! Matrix products, alone and many in one launch.

use super::{name, sum_tolerance};
use crate::gpu::Failure;
use crate::gpu::case::{Case, Maker, Planned, Scale, Tolerance, Variant, poison};
use rota_kernels::{Cost, Epilogue, Gemm, Grouped, Math, Matrix, Pointer};
use serde_json::json;

pub fn planned(scale: Scale) -> Vec<Planned> {
    let shapes: &[[u32; 3]] =
        scale.pick(&[[4096, 4096, 4096], [512, 1024, 1024], [8, 1000, 1280]], &[[70, 66, 40], [5, 33, 20]]);
    let mut all = Vec::new();
    for math in [Math::F32, Math::Tf32, Math::F16, Math::Bf16] {
        all.extend(shapes.iter().map(|&shape| Planned::new(math, move |maker| gemm(maker, math, shape))));
    }
    for math in [Math::F32, Math::Tf32, Math::F16] {
        all.push(Planned::new(math, move |maker| grouped(maker, math, scale)));
    }
    all
}

/// A dense layer: x [rows, depth], w [columns, depth], a bias per column.
fn gemm(maker: &mut Maker, math: Math, [rows, columns, depth]: [u32; 3]) -> Result<Case, Failure> {
    let dtype = math.storage();
    let [r, c, d] = [rows, columns, depth].map(u64::from);
    let (a, b) = (maker.operand(r * d, math)?, maker.operand(c * d, math)?);
    let bias = maker.tensor(c, dtype)?;
    let output = maker.output(r * c, dtype)?;
    let gemm = Gemm {
        math,
        rows,
        columns,
        depth,
        batches: [1, 1],
        a: Matrix::row_major(a.pointer, depth),
        b: Matrix::transposed(b.pointer, depth),
        c: Matrix::row_major(output.pointer, columns),
        epilogue: Epilogue { bias: bias.pointer, bias_column: 1, ..Epilogue::default() },
    };
    let (columns, depth) = (columns as usize, depth as usize);
    Ok(Case {
        family: "gemm",
        what: format!("{} {rows}x{columns}x{depth}", name(math)),
        math,
        variants: Variant::mark(gemm.launches()?, &gemm.launch()?),
        output,
        expected: Box::new(move |index| {
            let (row, column) = (index / columns, index % columns);
            dot(&a.values[row * depth..][..depth], &b.values[column * depth..][..depth])
                + f64::from(bias.values[column])
        }),
        work: d,
        tolerance: Tolerance::stored(dtype, sum_tolerance(d)),
        peer: Some(json!({ "op": "linear", "dtype": name(math), "rows": r, "columns": c, "depth": d })),
    })
}

/// The heads of a prefix group: rows of each, columns of each; one has no rows this time.
fn grouped(maker: &mut Maker, math: Math, scale: Scale) -> Result<Case, Failure> {
    let heads: &[(u32, u32)] = scale.pick(
        &[(32, 10), (32, 2), (0, 20), (32, 100), (64, 64), (16, 10), (32, 2), (24, 5)],
        &[(3, 10), (0, 7), (20, 66), (1, 2)],
    );
    let depth: u32 = scale.pick(1280, 36);
    let dtype = math.storage();
    // Where each head's output begins; starts are aligned, and what lies between stays as it is.
    let mut starts = vec![0_u64];
    for &(rows, columns) in heads {
        starts.push((starts[starts.len() - 1] + u64::from(rows) * u64::from(columns)).next_multiple_of(64));
    }
    let output = maker.output(starts[heads.len()], dtype)?;
    let (mut problems, mut cost, mut operands) = (Vec::new(), Cost::default(), Vec::new());
    for (&(rows, columns), &start) in heads.iter().zip(&starts) {
        let a = maker.operand(u64::from(rows.max(1)) * u64::from(depth), math)?;
        let b = maker.operand(u64::from(columns) * u64::from(depth), math)?;
        let gemm = Gemm {
            math,
            rows,
            columns,
            depth,
            batches: [1, 1],
            a: Matrix::row_major(a.pointer, depth),
            b: Matrix::transposed(b.pointer, depth),
            c: Matrix::row_major(Pointer(output.pointer.0 + start * dtype.bytes()), columns),
            epilogue: Epilogue::default(),
        };
        cost = cost + gemm.launch()?.cost;
        problems.push(gemm.problem()?);
        operands.push((a, b));
    }
    let grouped = Grouped {
        math,
        problems: maker.table(&problems)?,
        count: heads.len() as u32,
        rows_max: heads.iter().map(|&(rows, _)| rows).max().unwrap_or(0),
        columns_max: heads.iter().map(|&(_, columns)| columns).max().unwrap_or(0),
        cost,
    };
    let depth = depth as usize;
    Ok(Case {
        family: "grouped",
        what: format!("{} {} heads, depth {depth}", name(math), heads.len()),
        math,
        variants: Variant::mark(grouped.launches()?, &grouped.launch()?),
        output,
        expected: Box::new(move |index| {
            let head = starts.partition_point(|&start| start <= index as u64) - 1;
            let (rows, columns) = (heads[head].0 as usize, heads[head].1 as usize);
            let place = index - starts[head] as usize;
            if place >= rows * columns {
                return poison(dtype);
            }
            let (a, b) = &operands[head];
            dot(&a.values[place / columns * depth..][..depth], &b.values[place % columns * depth..][..depth])
        }),
        work: depth as u64,
        tolerance: Tolerance::stored(dtype, sum_tolerance(depth as u64)),
        peer: Some(json!({ "op": "linears", "dtype": name(math), "depth": depth,
            "heads": heads.iter().filter(|&&(rows, _)| rows > 0).collect::<Vec<_>>() })),
    })
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
