//! Convolutions: as products, of single channels, and backwards.

use super::{FLOATS, name, sum_tolerance};
use crate::gpu::Failure;
use crate::gpu::case::{Case, Maker, Planned, Scale, Tensor, Tolerance, Variant};
use rota_kernels::{Activation, Conv, Epilogue, MULTIPROCESSORS, Math, Pointer};
use serde_json::{Value, json};

/// A square kernel with half of it as padding; `filters` per group times groups in all.
#[derive(Clone, Copy)]
struct Sizes {
    images: u32,
    channels: u32,
    input: [u32; 2],
    filters: u32,
    kernel: u32,
    stride: u32,
    groups: u32,
}

const fn sizes(images: u32, channels: u32, input: [u32; 2], filters: u32, kernel: u32, stride: u32) -> Sizes {
    Sizes { images, channels, input, filters, kernel, stride, groups: 1 }
}

const FULL: &[Sizes] = &[
    sizes(8, 64, [56, 56], 64, 3, 1),
    sizes(8, 256, [14, 14], 256, 3, 1),
    sizes(8, 3, [224, 224], 32, 3, 2),
    sizes(8, 24, [56, 56], 144, 1, 1),
    sizes(8, 320, [7, 7], 1280, 1, 1),
];
const SMALL: &[Sizes] = &[sizes(1, 5, [9, 7], 6, 3, 1), sizes(2, 8, [13, 11], 10, 1, 1), sizes(1, 3, [9, 9], 5, 3, 2)];

pub fn planned(scale: Scale) -> Vec<Planned> {
    let dense = scale.pick(FULL, SMALL);
    let mut all = Vec::new();
    for math in [Math::F32, Math::Tf32, Math::F16] {
        all.extend(dense.iter().map(|&sizes| Planned::new(math, move |maker| conv(maker, math, sizes))));
    }
    let (images, channels, side) = scale.pick((8, 144, 56), (1, 3, 10));
    for (_, math) in FLOATS {
        for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1)] {
            let plain = sizes(images, channels, [side, side + 1], channels, kernel, stride);
            let sizes = Sizes { groups: channels, ..plain };
            all.push(Planned::new(math, move |maker| conv(maker, math, sizes)));
        }
        let sizes = scale.pick(sizes(8, 24, [80, 80], 24, 2, 2), sizes(1, 3, [5, 4], 5, 2, 2));
        all.push(Planned::new(math, move |maker| transposed(maker, math, sizes)));
    }
    all
}

struct Made {
    conv: Conv,
    tensors: [Tensor; 3],
    output: crate::gpu::case::Output,
}

fn make(maker: &mut Maker, math: Math, sizes: Sizes, output: [u32; 2], pad: u32) -> Result<Made, Failure> {
    let Sizes { images, channels, input, filters, kernel, stride, groups } = sizes;
    let (dtype, product) = (math.storage(), |numbers: &[u32]| numbers.iter().map(|&n| u64::from(n)).product::<u64>());
    let tensors = [
        maker.operand(product(&[images, channels, input[0], input[1]]), math)?,
        maker.operand(product(&[filters, channels / groups, kernel, kernel]), math)?,
        maker.tensor(u64::from(filters), dtype)?,
    ];
    let result = maker.output(product(&[images, filters, output[0], output[1]]), dtype)?;
    let [x, w, bias] = tensors.each_ref().map(|tensor| tensor.pointer);
    let epilogue = Epilogue { bias, activation: Activation::Relu, residual: Pointer::NONE, ..Epilogue::default() };
    let conv = Conv {
        math,
        images,
        channels,
        input,
        filters,
        output,
        groups,
        kernel: [kernel; 2],
        strides: [stride; 2],
        dilations: [1, 1],
        pads: [pad as i32; 2],
        x,
        w,
        y: result.pointer,
        epilogue,
    };
    Ok(Made { conv, tensors, output: result })
}

fn conv(maker: &mut Maker, math: Math, sizes: Sizes) -> Result<Case, Failure> {
    let pad = sizes.kernel / 2;
    let output = sizes.input.map(|side| (side + 2 * pad - sizes.kernel) / sizes.stride + 1);
    let Made { conv, tensors: [x, w, bias], output } = make(maker, math, sizes, output, pad)?;
    let depthwise = sizes.groups > 1;
    let mut launches = conv.launches()?;
    // Single channels as products waste nearly all of a tile: nobody would take them.
    launches.retain(|launch| !depthwise || launch.kernel.name.starts_with("rota_depthwise"));
    let chosen = maker.chosen(|room| conv.launches_on(MULTIPROCESSORS, room))?;
    let variants = Variant::mark_chains(launches.into_iter().map(|launch| vec![launch]), chosen);
    let terms = u64::from(sizes.channels / sizes.groups) * u64::from(sizes.kernel).pow(2);
    let expected = move |index: usize| {
        let [oh, ow] = conv.output.map(|side| side as usize);
        let (ox, oy, rest) = (index % ow, index / ow % oh, index / (ow * oh));
        let (filter, image) = (rest % sizes.filters as usize, rest / sizes.filters as usize);
        let (channels, kernel) = ((sizes.channels / sizes.groups) as usize, sizes.kernel as usize);
        let first = filter / (sizes.filters / sizes.groups) as usize * channels;
        let [height, width] = sizes.input.map(|side| side as usize);
        let mut sum = f64::from(bias.values[filter]);
        for (c, ky, kx) in places(channels, kernel) {
            let (iy, ix) = (oy * sizes.stride as usize + ky, ox * sizes.stride as usize + kx);
            let (Some(iy), Some(ix)) = (iy.checked_sub(pad as usize), ix.checked_sub(pad as usize)) else { continue };
            if iy < height && ix < width {
                let from = ((image * sizes.channels as usize + first + c) * height + iy) * width + ix;
                let weight = ((filter * channels + c) * kernel + ky) * kernel + kx;
                sum += f64::from(x.values[from]) * f64::from(w.values[weight]);
            }
        }
        sum.max(0.0)
    };
    Ok(Case {
        family: if depthwise { "depthwise" } else { "conv" },
        what: what(math, sizes),
        math: if depthwise { Math::F32 } else { math },
        variants,
        output,
        expected: Box::new(expected),
        work: terms,
        tolerance: Tolerance::stored(math.storage(), sum_tolerance(terms)),
        peer: Some(peer("conv2d", math, sizes, pad)),
    })
}

fn transposed(maker: &mut Maker, math: Math, sizes: Sizes) -> Result<Case, Failure> {
    let output = sizes.input.map(|side| (side - 1) * sizes.stride + sizes.kernel);
    let Made { conv, tensors: [x, w, bias], output } = make(maker, math, sizes, output, 0)?;
    let blocks = conv.launch_transposed()?.kernel.blocks;
    let launches = blocks.iter().map(|&block| conv.launch_transposed_with(block)).collect::<Result<_, _>>()?;
    let expected = move |index: usize| {
        let [oh, ow] = conv.output.map(|side| side as usize);
        let (ox, oy, rest) = (index % ow, index / ow % oh, index / (ow * oh));
        let (filters, channels) = (sizes.filters as usize, sizes.channels as usize);
        let (filter, image) = (rest % filters, rest / filters);
        let (kernel, stride) = (sizes.kernel as usize, sizes.stride as usize);
        let [height, width] = sizes.input.map(|side| side as usize);
        let mut sum = f64::from(bias.values[filter]);
        for (c, ky, kx) in places(channels, kernel) {
            let (Some(y), Some(x_)) = (oy.checked_sub(ky), ox.checked_sub(kx)) else { continue };
            let reaches = y % stride == 0 && x_ % stride == 0 && y / stride < height && x_ / stride < width;
            if reaches {
                let from = ((image * channels + c) * height + y / stride) * width + x_ / stride;
                let weight = ((c * filters + filter) * kernel + ky) * kernel + kx;
                sum += f64::from(x.values[from]) * f64::from(w.values[weight]);
            }
        }
        sum.max(0.0)
    };
    let terms = u64::from(sizes.channels) * u64::from(sizes.kernel).pow(2);
    Ok(Case {
        family: "conv_transpose",
        what: what(math, sizes),
        math: Math::F32,
        variants: Variant::mark(launches, &conv.launch_transposed()?),
        output,
        expected: Box::new(expected),
        work: terms,
        tolerance: Tolerance::stored(math.storage(), sum_tolerance(terms)),
        peer: Some(peer("conv_transpose2d", math, sizes, 0)),
    })
}

fn places(channels: usize, kernel: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..channels * kernel * kernel).map(move |at| (at / (kernel * kernel), at / kernel % kernel, at % kernel))
}

fn what(math: Math, sizes: Sizes) -> String {
    let Sizes { images, channels, input: [h, w], filters, kernel, stride, .. } = sizes;
    format!("{} {images}x{channels}x{h}x{w} to {filters}, {kernel}x{kernel}/{stride}", name(math))
}

fn peer(op: &str, math: Math, sizes: Sizes, pad: u32) -> Value {
    let Sizes { images, channels, input, filters, kernel, stride, groups } = sizes;
    json!({ "op": op, "dtype": name(math), "images": images, "channels": channels, "input": input, "filters": filters,
        "kernel": kernel, "stride": stride, "groups": groups, "pad": pad })
}
