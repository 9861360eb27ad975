//! The cases: every kernel of the catalogue, at a handful of sizes each.

mod convolutions;
mod moves;
mod pointwise;
mod products;
mod rows;
mod windows;

use super::case::{Planned, Scale};
use rota_kernels::{Float, Math, Type};

/// All of them, family by family.
pub fn planned(scale: Scale) -> Vec<Planned> {
    let mut all = products::planned(scale);
    all.extend(convolutions::planned(scale));
    all.extend(windows::planned(scale));
    all.extend(rows::planned(scale));
    all.extend(moves::planned(scale));
    all.extend(pointwise::planned(scale));
    all
}

/// As torch and the tables call it.
fn name(math: Math) -> &'static str {
    match math {
        Math::F32 => "f32",
        Math::Tf32 => "tf32",
        Math::F16 => "f16",
        Math::Bf16 => "bf16",
    }
}

const FLOATS: [(Float, Math); 2] = [(Float::F32, Math::F32), (Float::F16, Math::F16)];

/// Absolute tolerance of a sum of `terms` products below 1, in f32.
fn sum_tolerance(terms: u64) -> f64 {
    1e-6 * terms as f64 + 4e-6
}

/// The same with the storage's own rounding of results about 1.
fn tolerance_of(dtype: Type) -> f64 {
    match dtype {
        Type::F16 => 4e-3,
        _ => 2e-5,
    }
}
