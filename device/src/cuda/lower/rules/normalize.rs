//! Normalisations over rows, and resizing of pictures.

use super::count;
use crate::cuda::lower::builder::Builder;
use crate::cuda::lower::epilogue::Finish;
use crate::cuda::lower::evaluate::floats;
use crate::cuda::lower::{LowerError, Site};
use rota_graph::{Tensor, ValueId};
use rota_kernels::Pointer;
use rota_kernels::normalize::{Affine, Normalize};
use rota_kernels::resize::{Coordinates, Filter, Resize, Rounding, Table};

pub fn normalize(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    if site.node.outputs.iter().skip(1).flatten().next().is_some() {
        return Err(site.refuse("is asked for means or variances, which is not supported"));
    }
    let x = b.operand(site.input(0)?)?;
    let x = b.floats_of(&x)?;
    let dims = x.dims().to_vec();
    let product = |dims: &[u64]| dims.iter().product::<u64>();
    let rank = dims.len();
    let channels = || dims.get(1).copied().unwrap_or(1);
    let (rows, columns, affine) = match site.node.operator.as_str() {
        "InstanceNormalization" => (
            product(&dims[..2.min(rank)]),
            product(&dims[2.min(rank)..]),
            Affine::PerChannel { channels: count(site, channels())? },
        ),
        "GroupNormalization" => {
            let groups =
                site.node.int("num_groups").and_then(|groups| u64::try_from(groups).ok()).filter(|&groups| groups > 0);
            let groups = groups.ok_or_else(|| site.refuse("lacks its num_groups"))?;
            let each = count(site, channels() / groups)?;
            (
                dims[0] * groups,
                product(&dims[1..]) / groups,
                Affine::PerGroup { groups: count(site, groups)?, channels: each },
            )
        }
        _ => {
            let axis = site.axis(site.node.int("axis").unwrap_or(-1), rank)?;
            (product(&dims[..axis]), product(&dims[axis..]), Affine::PerColumn)
        }
    };
    let mut parameter = |at: usize| -> Result<Pointer, LowerError> {
        match site.node.input(at) {
            Some(value) => {
                let operand = b.operand(value)?;
                let wanted = if let Affine::PerColumn = affine { columns } else { channels() };
                if operand.view.elements() != wanted {
                    return Err(site.refuse(format!("has {} factors for {wanted} elements", operand.view.elements())));
                }
                Ok(b.floats_of(&operand)?.pointer())
            }
            None => Ok(Pointer::NONE),
        }
    };
    let (gamma, beta) = (parameter(1)?, parameter(2)?);
    let y = b.output(site, 0)?;
    if y.view.elements() == 0 {
        return Ok(());
    }
    let normalize = Normalize {
        dtype: b.storage(),
        rows: count(site, rows)?,
        columns: count(site, columns)?,
        affine,
        epsilon: site.node.float("epsilon").unwrap_or(1e-5),
        root_mean_square: site.node.operator == "RMSNormalization",
        x: x.pointer(),
        residual: Pointer::NONE,
        gamma,
        beta,
        y: y.pointer(),
    };
    b.push(normalize.launch())
}

/// By tables of which inputs make each row and column of the output, and by how much.
pub fn resize(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    let x = b.operand(site.input(0)?)?;
    let layout = super::windows::layout_of(b, &x);
    let x = b.picture(&x, layout)?;
    let output = site.output_dims(0)?;
    let rank = x.dims().len();
    let stretches = matches!(site.node.string("keep_aspect_ratio_policy"), None | Some("stretch"));
    if site.flag("antialias") || !stretches {
        return Err(site.refuse("is asked for antialiasing or to keep proportions, which is not supported"));
    }
    if rank < 2 || x.dims()[..rank - 2] != output[..rank - 2] {
        return Err(site.refuse("resizes other axes than the last two, which is not supported"));
    }
    let filter = filter(site)?;
    let coordinates = coordinates(site)?;
    let scales = scales(site, rank)?;
    let mut places = [Pointer::NONE; 2];
    let mut weights = [Pointer::NONE; 2];
    let mut taps = [0; 2];
    for at in 0..2 {
        let axis = rank - 2 + at;
        let (from, to) = (count(site, x.dims()[axis])?, count(site, output[axis])?);
        let scale = scales.as_ref().map_or(to as f32 / from.max(1) as f32, |scales| scales[axis]);
        let table = Table::new(from, to, scale, coordinates, filter);
        taps[at] = table.taps;
        let data = table.places.iter().flat_map(|place| place.to_le_bytes()).collect();
        let held = Tensor { dtype: rota_graph::DType(12), dims: vec![table.places.len() as u64], data };
        places[at] = b.constant(&held)?.pointer();
        weights[at] = b.exact(&[table.weights.len() as u64], &table.weights).pointer();
    }
    let pair = |dims: &[u64]| -> Result<[u32; 2], LowerError> {
        Ok([count(site, dims[rank - 2])?, count(site, dims[rank - 1])?])
    };
    let (planes, inner) = super::windows::planes(site, &output, layout, rank - 2)?;
    let (from, to) = (pair(x.dims())?, pair(&output)?);
    let y = b.result_in(site, None, layout)?;
    b.push(
        Resize {
            dtype: b.storage(),
            planes,
            inner,
            input: from,
            output: to,
            taps,
            x: x.pointer(),
            y: y.pointer(),
            places,
            weights,
        }
        .launch(),
    )?;
    b.settle(site, y)
}

/// By axis: the factors that the model gives, if it does.
fn scales(site: &Site, rank: usize) -> Result<Option<Vec<f32>>, LowerError> {
    let at = if site.node.operator == "Upsample" || site.opset <= 10 { 1 } else { 2 };
    let attribute = site.node.floats("scales").map(<[f32]>::to_vec);
    let Some(given) = attribute.or_else(|| site.constant(at).and_then(floats)).filter(|scales| !scales.is_empty())
    else {
        return Ok(None);
    };
    let mut scales = vec![1.0; rank];
    let all: Vec<i64> = (0..rank as i64).collect();
    let axes = site.node.ints("axes").unwrap_or(&all);
    if axes.len() != given.len() {
        return Err(site.refuse(format!("has {} factors for {rank} axes", given.len())));
    }
    for (&axis, &scale) in axes.iter().zip(&given) {
        scales[site.axis(axis, rank)?] = scale;
    }
    Ok(Some(scales))
}

fn coordinates(site: &Site) -> Result<Coordinates, LowerError> {
    let old = site.node.operator == "Upsample" || site.opset <= 10;
    let mode =
        site.node.string("coordinate_transformation_mode").unwrap_or(if old { "asymmetric" } else { "half_pixel" });
    Ok(match mode {
        "half_pixel" => Coordinates::HalfPixel,
        "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        "asymmetric" => Coordinates::Asymmetric,
        "align_corners" => Coordinates::AlignCorners,
        other => return Err(site.refuse(format!("maps coordinates by {other}, which is not supported"))),
    })
}

fn filter(site: &Site) -> Result<Filter, LowerError> {
    let old = site.node.operator == "Upsample" || site.opset <= 10;
    let rounding = match site.node.string("nearest_mode").unwrap_or(if old { "floor" } else { "round_prefer_floor" }) {
        "floor" => Rounding::Floor,
        "ceil" => Rounding::Ceil,
        "round_prefer_ceil" => Rounding::PreferCeil,
        _ => Rounding::PreferFloor,
    };
    Ok(match site.node.string("mode").unwrap_or("nearest") {
        "nearest" => Filter::Nearest(rounding),
        "linear" | "bilinear" => Filter::Linear,
        "cubic" => Filter::Cubic {
            coefficient: site.node.float("cubic_coeff_a").unwrap_or(-0.75),
            exclude_outside: site.flag("exclude_outside"),
        },
        other => return Err(site.refuse(format!("interpolates by {other}, which is not supported"))),
    })
}
