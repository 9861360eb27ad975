//! Convolutions and pools.

use super::count;
use crate::cuda::lower::builder::{Builder, Operand};
use crate::cuda::lower::epilogue::Finish;
use crate::cuda::lower::evaluate::floats;
use crate::cuda::lower::{Layouts, LowerError, Site};
use rota_graph::ValueId;
use rota_kernels::{Conv, Epilogue, Layout, Pool, Reduce, Reduction, Window};

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

/// Channels last where the input has them so, and nothing as large has to be turned for it.
pub(super) fn layout_of(b: &Builder, x: &Operand) -> Layout {
    match b.options.layout {
        Layouts::Nhwc if x.view.has_channels_last() => Layout::Nhwc,
        _ => Layout::Nchw,
    }
}

/// What stands before and behind the pixels of a tensor whose first `axes` are no pixels.
pub(super) fn planes(site: &Site, dims: &[u64], layout: Layout, axes: usize) -> Result<(u32, u32), LowerError> {
    let product = |dims: &[u64]| count(site, dims.iter().product());
    match layout {
        Layout::Nchw => Ok((product(&dims[..axes])?, 1)),
        Layout::Nhwc => Ok((product(&dims[..1])?, product(&dims[1..axes])?)),
    }
}

/// How a convolution's output lies. NHWC takes weights that are known now, since they have to lie otherwise too, and of depthwise ones fours of
/// channels.
fn layout_of_convolution(b: &Builder, site: &Site, channels: u64, filters: u64, groups: u32) -> Layout {
    let depthwise = groups > 1 && u64::from(groups) == channels;
    let fours = channels == filters && channels.is_multiple_of(4);
    let known = site.constant(1).and_then(floats).is_some();
    match b.options.layout {
        Layouts::Nhwc if known && (!depthwise || fours) => Layout::Nhwc,
        _ => Layout::Nchw,
    }
}

/// The kernels as they have to lie, times what the group behind multiplies each channel by.
fn weights(
    b: &mut Builder,
    site: &Site,
    scale: &[f32],
    layout: Layout,
    depthwise: bool,
) -> Result<Operand, LowerError> {
    let dims = site.dims(1)?;
    let scaled = scale.iter().any(|&scale| scale != 1.0);
    let known = site.constant(1).filter(|_| scaled || layout == Layout::Nhwc).and_then(floats);
    let Some(mut weights) = known else {
        let weights = site.input(1)?;
        return if depthwise {
            b.exactly(weights)
        } else {
            b.operand(weights).and_then(|weights| b.floats_of(&weights))
        };
    };
    // Factors by channel are multiplied in here, once.
    let each = (weights.len() / dims[0].max(1) as usize).max(1);
    for (filter, weights) in weights.chunks_mut(each).enumerate() {
        let scale = scale[filter % scale.len()];
        weights.iter_mut().for_each(|weight| *weight *= scale);
    }
    if layout == Layout::Nhwc {
        // [outer, channels, taps] becomes [outer, taps, channels]; a depthwise one's channels are its filters.
        let channels = if depthwise { dims[0] } else { dims[1] } as usize;
        let block = (channels * dims[2..].iter().product::<u64>() as usize).max(1);
        let turned = |block: &[f32]| -> Vec<f32> {
            let taps = block.len() / channels;
            (0..block.len()).map(|at| block[at % channels * taps + at / channels]).collect()
        };
        weights = weights.chunks(block).flat_map(turned).collect();
    }
    if depthwise { Ok(b.exact(&dims, &weights)) } else { b.floats(&dims, &weights) }
}

fn convolve(
    b: &mut Builder,
    site: &Site,
    finish: Option<(&Finish, ValueId)>,
    transposed: bool,
) -> Result<(), LowerError> {
    let x = b.operand(site.input(0)?)?;
    let (w, output) = (site.dims(1)?, site.output_dims(0)?);
    let frame = Frame::new(site, x.dims(), &output, &w[2..], transposed)?;
    let identity = Finish::default();
    let finish_of = finish.map_or(&identity, |(finish, _)| finish);
    let groups = count(site, u64::try_from(site.node.int("group").unwrap_or(1)).unwrap_or(0))?;
    let filters = count(site, output[1])?;
    let channels = x.dims()[1];
    let depthwise = groups > 1 && u64::from(groups) == channels && !transposed;
    let layout = match transposed {
        true => Layout::Nchw,
        false => layout_of_convolution(b, site, channels, output[1], groups),
    };
    // A few channels, as a network's input has them, are no faster when they lie last: they are read as they come.
    let few = !depthwise && !channels.is_multiple_of(4) && x.view.is_dense() && !x.view.lies(Layout::Nhwc);
    let x_layout = if few { Layout::Nchw } else { layout };
    let x = b.picture(&x, x_layout)?;
    let weights = weights(b, site, &finish_of.scale, layout, depthwise)?;
    let mut epilogue =
        Epilogue { activation: finish_of.activation, residual_last: finish_of.residual_last, ..Epilogue::default() };
    let changed =
        finish_of.scale.iter().any(|&scale| scale != 1.0) || finish_of.shift.iter().any(|&shift| shift != 0.0);
    if changed {
        let own = site.constant(2).and_then(floats).unwrap_or_else(|| vec![0.0; filters as usize]);
        let of = |all: &[f32], at: usize| all[at % all.len()];
        let bias = own.iter().enumerate().map(|(at, own)| own * of(&finish_of.scale, at) + of(&finish_of.shift, at));
        epilogue.bias = b.exact(&[u64::from(filters)], &bias.collect::<Vec<_>>()).pointer();
    } else if site.node.input(2).is_some() {
        epilogue.bias = b.exactly(site.input(2)?)?.pointer();
    }
    epilogue.bias_row = 1;
    if let Some(residual) = finish_of.residual {
        let residual = b.operand(residual)?;
        epilogue.residual = b.picture(&residual, layout)?.pointer();
    }
    let y = b.result_in(site, finish, layout)?;
    let conv = Conv {
        math: b.math(),
        images: count(site, x.dims()[0])?,
        channels: count(site, channels)?,
        input: frame.input,
        filters,
        output: frame.output,
        groups,
        kernel: frame.kernel,
        strides: frame.strides,
        dilations: frame.dilations,
        pads: frame.before(),
        layout,
        x_layout,
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
    b.product_working_out(conv.places(), |multiprocessors, room| conv.launches_on(multiprocessors, room))
}

pub fn pool(b: &mut Builder, site: &Site, _: Option<(&Finish, ValueId)>) -> Result<(), LowerError> {
    if site.node.outputs.iter().flatten().count() > 1 {
        return Err(site.refuse("is asked for the places of its maxima, which is not supported"));
    }
    let x = b.operand(site.input(0)?)?;
    let layout = layout_of(b, &x);
    let x = b.picture(&x, layout)?;
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
    let (planes, inner) = planes(site, x.dims(), layout, 2)?;
    let y = b.result_in(site, None, layout)?;
    let pool = Pool {
        dtype: b.storage(),
        planes,
        inner,
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
    let layout = layout_of(b, &x);
    let x = b.picture(&x, layout)?;
    if x.dims().len() < 2 {
        return Err(site.refuse("takes no picture"));
    }
    let (outer, inner) = planes(site, x.dims(), layout, 2)?;
    let pixels = count(site, x.dims()[2..].iter().product())?;
    let reduction = if site.node.operator == "GlobalMaxPool" { Reduction::Max } else { Reduction::Mean };
    let y = b.output(site, 0)?;
    b.push(
        Reduce {
            dtype: b.storage().into(),
            reduction,
            last: false,
            wide: false,
            outer,
            count: pixels,
            inner,
            x: x.pointer(),
            y: y.pointer(),
        }
        .launch(),
    )
}
