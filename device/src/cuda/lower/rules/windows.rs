//! Convolutions and pools.

use super::count;
use crate::cuda::lower::builder::Builder;
use crate::cuda::lower::epilogue::Finish;
use crate::cuda::lower::evaluate::floats;
use crate::cuda::lower::{LowerError, Site};
use rota_graph::ValueId;
use rota_kernels::{Conv, Epilogue, Pool, Reduce, Reduction, Window};

/// A window over height and width; a sequence is a picture of height 1.
struct Frame {
    input: [u32; 2],
    output: [u32; 2],
    kernel: [u32; 2],
    strides: [u32; 2],
    dilations: [u32; 2],
    /// Above and to the left, then below and to the right.
    pads: [i64; 4],
}

impl Frame {
    fn new(site: &Site, input: &[u64], output: &[u64], kernel: &[u64], transposed: bool) -> Result<Frame, LowerError> {
        let axes = input.len().saturating_sub(2);
        if !(1..=2).contains(&axes) || output.len() != input.len() || kernel.len() != axes {
            return Err(site.refuse(format!(
                "works on tensors of {} dimensions, the kernels on pictures and sequences",
                input.len()
            )));
        }
        let pair = |of: &[u64], otherwise: u32| -> Result<[u32; 2], LowerError> {
            match *of {
                [across] => Ok([otherwise, count(site, across)?]),
                [down, across] => Ok([count(site, down)?, count(site, across)?]),
                _ => Err(site.refuse("has attributes for another number of axes than its input's")),
            }
        };
        let given = |name: &str| -> Result<[u32; 2], LowerError> {
            let values = site.node.ints(name).map_or(vec![1; axes], <[i64]>::to_vec);
            let values = values.iter().map(|&value| u64::try_from(value).ok()).collect::<Option<Vec<_>>>();
            pair(&values.ok_or_else(|| site.refuse(format!("has negative {name}")))?, 1)
        };
        let mut frame = Frame {
            input: pair(&input[2..], 1)?,
            output: pair(&output[2..], 1)?,
            kernel: pair(kernel, 1)?,
            strides: given("strides")?,
            dilations: given("dilations")?,
            pads: [0; 4],
        };
        frame.pads = frame.pads(site, axes, transposed)?;
        Ok(frame)
    }

    fn pads(&self, site: &Site, axes: usize, transposed: bool) -> Result<[i64; 4], LowerError> {
        let automatic = site.node.string("auto_pad").unwrap_or("NOTSET");
        let sized = transposed && site.node.ints("output_shape").is_some();
        if automatic == "VALID" || (automatic == "NOTSET" && !sized) {
            let pads = site.node.ints("pads").filter(|_| automatic != "VALID");
            return match (pads, axes) {
                (None, _) => Ok([0; 4]),
                (Some(&[left, right]), 1) => Ok([0, left, 0, right]),
                (Some(&[top, left, bottom, right]), 2) => Ok([top, left, bottom, right]),
                _ => Err(site.refuse("has pads for another number of axes than its input's")),
            };
        }
        let extra = site.node.ints("output_padding").unwrap_or(&[0; 2]);
        let mut pads = [0; 4];
        for axis in 2 - axes..2 {
            let [input, output, kernel] = [self.input[axis], self.output[axis], self.kernel[axis]].map(i64::from);
            let reach = (kernel - 1) * i64::from(self.dilations[axis]) + 1;
            let (stride, extra) = (i64::from(self.strides[axis]), extra.get(axis + axes - 2).copied().unwrap_or(0));
            let total = match transposed {
                true => stride * (input - 1) + extra + reach - output,
                false => (output - 1) * stride + reach - input,
            };
            let total = total.max(0);
            let more_behind = automatic == "SAME_UPPER" || (automatic == "NOTSET" && !transposed);
            pads[axis] = if more_behind { total / 2 } else { total - total / 2 };
            pads[axis + 2] = total - pads[axis];
        }
        Ok(pads)
    }

    fn before(&self) -> [i32; 2] {
        [self.pads[0] as i32, self.pads[1] as i32]
    }
}

pub fn conv(b: &mut Builder, site: &Site, finish: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    convolve(b, site, finish, false)
}

pub fn conv_transpose(b: &mut Builder, site: &Site, finish: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    convolve(b, site, finish, true)
}

fn convolve(
    b: &mut Builder,
    site: &Site,
    finish: Option<(&Finish, ValueId)>,
    transposed: bool,
) -> Result<(), LowerError> {
    let x = b.operand(site.input(0)?)?;
    let x = b.floats_of(&x)?;
    let (w, output) = (site.dims(1)?, site.output_dims(0)?);
    let frame = Frame::new(site, x.dims(), &output, &w[2..], transposed)?;
    let identity = Finish::default();
    let finish_of = finish.map_or(&identity, |(finish, _)| finish);
    let groups = count(site, u64::try_from(site.node.int("group").unwrap_or(1)).unwrap_or(0))?;
    let filters = count(site, output[1])?;
    // Factors by channel are multiplied into the weights here, once.
    let scaled = finish_of.scale.iter().any(|&scale| scale != 1.0);
    let weights = match site.constant(1).filter(|_| scaled).and_then(floats) {
        Some(mut weights) => {
            let each = weights.len() / filters.max(1) as usize;
            for (filter, weights) in weights.chunks_mut(each.max(1)).enumerate() {
                let scale = finish_of.scale[filter % finish_of.scale.len()];
                weights.iter_mut().for_each(|weight| *weight *= scale);
            }
            b.floats(&w, &weights)?
        }
        None => {
            let weights = b.operand(site.input(1)?)?;
            b.floats_of(&weights)?
        }
    };
    let mut epilogue =
        Epilogue { activation: finish_of.activation, residual_last: finish_of.residual_last, ..Epilogue::default() };
    let changed = scaled || finish_of.shift.iter().any(|&shift| shift != 0.0);
    if changed {
        let own = site.constant(2).and_then(floats).unwrap_or_else(|| vec![0.0; filters as usize]);
        let of = |all: &[f32], at: usize| all[at % all.len()];
        let bias = own.iter().enumerate().map(|(at, own)| own * of(&finish_of.scale, at) + of(&finish_of.shift, at));
        epilogue.bias = b.floats(&[u64::from(filters)], &bias.collect::<Vec<_>>())?.pointer();
    } else if site.node.input(2).is_some() {
        let bias = b.operand(site.input(2)?)?;
        epilogue.bias = b.floats_of(&bias)?.pointer();
    }
    epilogue.bias_row = 1;
    if let Some(residual) = finish_of.residual {
        let residual = b.operand(residual)?;
        epilogue.residual = b.floats_of(&residual)?.pointer();
    }
    let y = b.result(site, finish)?;
    let conv = Conv {
        math: b.math(),
        images: count(site, x.dims()[0])?,
        channels: count(site, x.dims()[1])?,
        input: frame.input,
        filters,
        output: frame.output,
        groups,
        kernel: frame.kernel,
        strides: frame.strides,
        dilations: frame.dilations,
        pads: frame.before(),
        x: x.pointer(),
        w: weights.pointer(),
        y: y.pointer(),
        epilogue,
    };
    if y.view.elements() == 0 {
        return Ok(());
    }
    if transposed {
        return b.push(conv.launch_transposed());
    }
    b.product(|multiprocessors, room| conv.launches_on(multiprocessors, room))
}

pub fn pool(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    if site.node.outputs.iter().flatten().count() > 1 {
        return Err(site.refuse("is asked for the places of its maxima, which is not supported"));
    }
    let x = b.operand(site.input(0)?)?;
    let x = b.floats_of(&x)?;
    let output = site.output_dims(0)?;
    let kernel = site.node.ints("kernel_shape").ok_or_else(|| site.refuse("lacks its kernel_shape"))?;
    let kernel: Vec<u64> = kernel.iter().map(|&size| size as u64).collect();
    let frame = Frame::new(site, x.dims(), &output, &kernel, false)?;
    let behind = [frame.pads[2] as u32, frame.pads[3] as u32];
    let window = match site.node.operator.as_str() {
        "MaxPool" => Window::Max,
        _ if site.flag("count_include_pad") => Window::AverageWithPadding(behind),
        _ => Window::Average,
    };
    let y = b.result(site, None)?;
    let pool = Pool {
        dtype: b.storage(),
        planes: count(site, x.dims()[0] * x.dims()[1])?,
        input: frame.input,
        output: frame.output,
        kernel: frame.kernel,
        strides: frame.strides,
        dilations: frame.dilations,
        pads: frame.before(),
        window,
        x: x.pointer(),
        y: y.pointer(),
    };
    if y.view.elements() > 0 {
        b.push(pool.launch())?;
    }
    b.settle(site, y)
}

/// The mean or the maximum of each channel.
pub fn global_pool(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    let x = b.operand(site.input(0)?)?;
    let x = b.floats_of(&x)?;
    if x.dims().len() < 2 {
        return Err(site.refuse("takes no picture"));
    }
    let (planes, pixels) = (x.dims()[..2].iter().product(), x.dims()[2..].iter().product());
    let reduction = if site.node.operator == "GlobalMaxPool" { Reduction::Max } else { Reduction::Mean };
    let y = b.output(site, 0)?;
    let (outer, pixels) = (count(site, planes)?, count(site, pixels)?);
    b.push(
        Reduce {
            dtype: b.storage().into(),
            reduction,
            last: false,
            outer,
            count: pixels,
            inner: 1,
            x: x.pointer(),
            y: y.pointer(),
        }
        .launch(),
    )
}
