//! Matrix products, alone and many in one launch.

use super::{name, sum_tolerance};
use crate::gpu::Failure;
use crate::gpu::case::{Case, Maker, Planned, Scale, Tolerance, Variant, poison};
use rota_kernels::{Cost, Epilogue, Gemm, Grouped, MULTIPROCESSORS, Math, Matrix, Pointer};
use serde_json::json;

/// How the weights lie.
#[derive(Clone, Copy, PartialEq)]
enum Weights {
    /// [columns, depth]: a dense layer's.
    Deep,
    /// [depth, columns]: the right side of a product.
    Wide,
}

/// Of a depth that is split.
const PARTS: u32 = 3;

pub fn planned(scale: Scale) -> Vec<Planned> {
    use Weights::{Deep, Wide};
    let shapes: &[([u32; 3], Weights)] = scale.pick(
        &[
            ([4096, 4096, 4096], Wide),
            ([512, 1024, 1024], Deep),
            ([512, 56, 4608], Wide),
            ([8, 1000, 1280], Deep),
            ([8, 1000, 1280], Wide),
        ],
        &[([70, 66, 40], Deep), ([40, 72, 136], Deep), ([40, 72, 136], Wide), ([5, 33, 20], Deep), ([5, 33, 20], Wide)],
    );
    let mut all = Vec::new();
    for math in [Math::F32, Math::Tf32, Math::F16, Math::Bf16] {
        let each = |&(shape, weights)| Planned::new(math, move |maker| gemm(maker, math, scale, shape, weights));
        all.extend(shapes.iter().map(each));
    }
    for math in [Math::F32, Math::Tf32, Math::F16] {
        all.push(Planned::new(math, move |maker| grouped(maker, math, scale)));
    }
    all
}

/// x [rows, depth] times the weights, and a bias per column.
fn gemm(
    maker: &mut Maker,
    math: Math,
    scale: Scale,
    [rows, columns, depth]: [u32; 3],
    weights: Weights,
) -> Result<Case, Failure> {
    let dtype = math.storage();
    let [r, c, d] = [rows, columns, depth].map(u64::from);
    let (a, b) = (maker.operand(r * d, math)?, maker.operand(c * d, math)?);
    let bias = maker.tensor(c, dtype)?;
    let output = maker.output(r * c, dtype)?;
    let wide = weights == Weights::Wide;
    let gemm = Gemm {
        math,
        rows,
        columns,
        depth,
        batches: [1, 1],
        a: Matrix::row_major(a.pointer, depth),
        b: if wide { Matrix::row_major(b.pointer, columns) } else { Matrix::transposed(b.pointer, depth) },
        c: Matrix::row_major(output.pointer, columns),
        epilogue: Epilogue { bias: bias.pointer, bias_column: 1, ..Epilogue::default() },
    };
    // A GPU's time goes to the split that is chosen; where times mean nothing, all are tried.
    let split = match scale {
        Scale::Full => Vec::new(),
        Scale::Small => gemm.split_launches(PARTS, maker.scratch(4 * u64::from(PARTS) * r * c)?)?,
    };
    let chains = gemm.launches()?.into_iter().map(|launch| vec![launch]).chain(split.iter().map(|pair| pair.to_vec()));
    let chosen = maker.chosen(|room| gemm.launches_on(MULTIPROCESSORS, room))?;
    let variants = Variant::mark_chains(chains, chosen);
    // Per column, and per step of the depth.
    let (across, along) = if wide { (1, columns as usize) } else { (depth as usize, 1) };
    let (width, depth) = (columns as usize, depth as usize);
    let expected = move |index: usize| {
        let (row, column) = (index / width, index % width);
        let terms = (0..depth).map(|at| (a.values[row * depth + at], b.values[column * across + at * along]));
        terms.map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>() + f64::from(bias.values[column])
    };
    Ok(Case {
        family: "gemm",
        what: format!("{} {rows}x{columns}x{depth}{}", name(math), if wide { "" } else { ", weights by column" }),
        math,
        variants,
        output,
        expected: Box::new(expected),
        work: d,
        tolerance: Tolerance::stored(dtype, sum_tolerance(d)),
        peer: Some(json!({ "op": "linear", "dtype": name(math), "rows": r, "columns": c, "depth": d, "wide": wide })),
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
