//! `conv.cu`, `depthwise.cu` and `conv_transpose.cu` on the host against direct sums.

mod support;

use proptest::prelude::*;
use rota_kernels::host::{Host, Memory};
use rota_kernels::{Activation, Conv, Epilogue, Float, Launch, Layout, Math, Pointer};
use support::{Numbers, Tensor, assert_close, run_chains};

/// Sizes of a convolution, without its tensors.
#[derive(Clone, Debug)]
struct Shape {
    images: u32,
    groups: u32,
    group_channels: u32,
    group_filters: u32,
    input: [u32; 2],
    kernel: [u32; 2],
    strides: [u32; 2],
    dilations: [u32; 2],
    pads: [i32; 2],
    pads_behind: [u32; 2],
}

impl Shape {
    fn output(&self) -> Option<[u32; 2]> {
        let size = |axis: usize| {
            let padded = self.input[axis] + self.pads[axis] as u32 + self.pads_behind[axis];
            let reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1;
            padded.checked_sub(reach).map(|rest| rest / self.strides[axis] + 1)
        };
        Some([size(0)?, size(1)?])
    }

    fn output_transposed(&self) -> Option<[u32; 2]> {
        let size = |axis: usize| {
            let reach =
                (self.input[axis] - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilations[axis] + 1;
            reach.checked_sub(self.pads[axis] as u32 + self.pads_behind[axis]).filter(|&size| size > 0)
        };
        Some([size(0)?, size(1)?])
    }

    /// Calls `visit(image, group, channel, filter, kernel's place, pixel, pixel that it meets)` for every product of the forward
    /// convolution from a picture of `large` to one of `small`.
    fn products(&self, large: [u32; 2], small: [u32; 2], mut visit: impl FnMut(u32, u32, u32, u32, u32, u32, u32)) {
        let [kh, kw] = self.kernel;
        for n in 0..self.images {
            for g in 0..self.groups {
                for (c, f) in (0..self.group_channels).flat_map(|c| (0..self.group_filters).map(move |f| (c, f))) {
                    for (oy, ox) in (0..small[0]).flat_map(|y| (0..small[1]).map(move |x| (y, x))) {
                        for (ky, kx) in (0..kh).flat_map(|y| (0..kw).map(move |x| (y, x))) {
                            let iy = (oy * self.strides[0] + ky * self.dilations[0]) as i32 - self.pads[0];
                            let ix = (ox * self.strides[1] + kx * self.dilations[1]) as i32 - self.pads[1];
                            if (0..large[0] as i32).contains(&iy) && (0..large[1] as i32).contains(&ix) {
                                let met = iy as u32 * large[1] + ix as u32;
                                visit(n, g, c, f, ky * kw + kx, oy * small[1] + ox, met);
                            }
                        }
                    }
                }
            }
        }
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let pair = |range: std::ops::Range<u32>| prop::array::uniform2(range);
    let pads = prop::array::uniform2(0..3_i32);
    let groups = prop_oneof![Just((1, 1..20_u32, 1..20_u32)), Just((3, 1..9, 1..5)), Just((8, 1..2, 1..3))];
    let channels = groups.prop_flat_map(|(groups, channels, filters)| (Just(groups), channels, filters));
    (1..3_u32, channels, pair(1..12), pair(1..6), pair(1..4), pair(1..3), pads, pair(0..3)).prop_map(
        |(images, (groups, group_channels, group_filters), input, kernel, strides, dilations, pads, pads_behind)| {
            Shape {
                images,
                groups,
                group_channels,
                group_filters,
                input,
                kernel,
                strides,
                dilations,
                pads,
                pads_behind,
            }
        },
    )
}

fn float(math: Math) -> Float {
    if math == Math::F16 { Float::F16 } else { Float::F32 }
}

/// Element types of the input, the weights, the bias and the residual.
fn types(shape: &Shape, transposed: bool, math: Math) -> [Float; 4] {
    let depthwise = shape.groups > 1 && shape.group_channels == 1 && !transposed;
    [float(math), if depthwise { Float::F32 } else { float(math) }, Float::F32, float(math)]
}

/// The description with tensors in `memory`, the activation HardSwish and a residual behind it.
fn conv(
    shape: &Shape,
    output: [u32; 2],
    math: Math,
    types: [Float; 4],
    memory: &mut Memory,
    tensors: &[Tensor; 4],
) -> Conv {
    let place = |at: usize, memory: &mut Memory| tensors[at].upload(types[at], memory);
    let [x, w, bias, residual] = [0, 1, 2, 3].map(|at| place(at, memory));
    Conv {
        math,
        images: shape.images,
        channels: shape.groups * shape.group_channels,
        input: shape.input,
        filters: shape.groups * shape.group_filters,
        output,
        groups: shape.groups,
        kernel: shape.kernel,
        strides: shape.strides,
        dilations: shape.dilations,
        pads: shape.pads,
        layout: Layout::Nchw,
        x_layout: Layout::Nchw,
        x,
        w,
        y: memory.alloc(tensors[3].len() * float(math).bytes() as usize),
        epilogue: Epilogue {
            bias,
            residual,
            residual_last: true,
            activation: Activation::HardSwish { a: 1.0 / 6.0, b: 0.5 },
            ..Epilogue::default()
        },
    }
}

/// `[outer, channels, pixels]` as `[outer, pixels, channels]`.
fn last(values: &[f32], channels: u32, pixels: u32) -> Vec<f32> {
    let (channels, pixels) = (channels as usize, pixels as usize);
    let block = |block: &[f32]| -> Vec<f32> {
        (0..block.len()).map(|at| block[at % channels * pixels + at / channels]).collect()
    };
    values.chunks(channels * pixels).flat_map(block).collect()
}

/// The same convolution into NHWC, from either layout, by every kernel and block that has it.
fn check_nhwc(shape: &Shape, conv: &Conv, types: [Float; 4], tensors: &[Tensor; 4], expected: &[f32], tolerance: f32) {
    let pixels = conv.output[0] * conv.output[1];
    let area = shape.kernel[0] * shape.kernel[1];
    let weights = match conv.is_depthwise() {
        true => last(tensors[1].values(), conv.filters, area),
        false => last(tensors[1].values(), shape.group_channels, area),
    };
    let expected = last(expected, conv.filters, pixels);
    for x_layout in [Layout::Nchw, Layout::Nhwc] {
        let mut memory = Memory::default();
        let mut place = |values: &[f32], at: usize| Tensor::new(values, types[at]).upload(types[at], &mut memory);
        let x = match x_layout {
            Layout::Nchw => place(tensors[0].values(), 0),
            Layout::Nhwc => place(&last(tensors[0].values(), conv.channels, shape.input[0] * shape.input[1]), 0),
        };
        let (w, bias) = (place(&weights, 1), place(tensors[2].values(), 2));
        let residual = place(&last(tensors[3].values(), conv.filters, pixels), 3);
        let y = memory.alloc(expected.len() * types[3].bytes() as usize);
        let epilogue = Epilogue { bias, residual, ..conv.epilogue };
        let conv = Conv { layout: Layout::Nhwc, x_layout, x, w, y, epilogue, ..*conv };
        let has = !conv.is_depthwise()
            || conv.channels == conv.filters && conv.channels.is_multiple_of(4) && x_layout == Layout::Nhwc;
        assert_eq!(conv.launch().is_ok(), has, "{conv:?}");
        if !has {
            continue;
        }
        let split = conv.split_launches(PARTS, memory.alloc(PARTS as usize * expected.len() * 4)).unwrap();
        let whole = conv.launches().unwrap().into_iter().chain(conv.launch()).map(|launch| vec![launch]);
        let chains = whole.chain(split.iter().map(|pair| pair.to_vec()));
        run_chains(chains, &mut memory, |memory, launch| {
            let what = format!("{} from {x_layout:?} {shape:?}", launch.kernel.name);
            assert_close(&Tensor::download(types[3], memory, y, expected.len()), &expected, tolerance, &what);
        });
    }
}

fn check(shape: &Shape, transposed: bool, math: Math) {
    let dtype = float(math);
    let Some(output) = (if transposed { shape.output_transposed() } else { shape.output() }) else { return };
    let mut numbers = Numbers::new(u64::from(shape.input[0] * 31 + shape.kernel[1]));
    let types = types(shape, transposed, math);
    let mut tensor = |count: u32, at: usize| Tensor::random(&mut numbers, count as usize, types[at]);
    let (channels, filters) = (shape.groups * shape.group_channels, shape.groups * shape.group_filters);
    let (pixels_in, pixels_out) = (shape.input[0] * shape.input[1], output[0] * output[1]);
    let area = shape.kernel[0] * shape.kernel[1];
    let tensors = [
        tensor(shape.images * channels * pixels_in, 0),
        tensor(filters * shape.group_channels * area, 1),
        tensor(filters, 2),
        tensor(shape.images * filters * pixels_out, 3),
    ];
    let mut memory = Memory::default();
    let conv = conv(shape, output, math, types, &mut memory, &tensors);

    let [x, w, bias, residual] = tensors.each_ref().map(|tensor| tensor.values());
    let mut expected = vec![0.0_f32; residual.len()];
    let (large, small) = if transposed { (output, shape.input) } else { (shape.input, output) };
    shape.products(large, small, |n, g, c, f, tap, pixel, met| {
        let (from, to) = if transposed { (pixel, met) } else { (met, pixel) };
        let (channel, filter) = (g * shape.group_channels + c, g * shape.group_filters + f);
        let weight = if transposed { channel * shape.group_filters + f } else { filter * shape.group_channels + c };
        expected[((n * filters + filter) * pixels_out + to) as usize] +=
            x[((n * channels + channel) * pixels_in + from) as usize] * w[(weight * area + tap) as usize];
    });
    for (index, value) in expected.iter_mut().enumerate() {
        let sum = *value + bias[index / pixels_out as usize % filters as usize];
        *value = sum * (sum / 6.0 + 0.5).clamp(0.0, 1.0) + residual[index];
    }
    let alone = |launch: Launch| vec![launch];
    let chains: Vec<Vec<Launch>> = if transposed {
        [32, 64, 128].map(|threads| alone(conv.launch_transposed_with(threads).unwrap())).to_vec()
    } else {
        let partial = memory.alloc(PARTS as usize * expected.len() * 4);
        let split = conv.split_launches(PARTS, partial).unwrap();
        let whole = conv.launches().unwrap().into_iter().chain(conv.launch());
        whole.map(alone).chain(split.iter().map(|pair| pair.to_vec())).collect()
    };
    let tolerance = match math {
        Math::F32 => 1e-4,
        _ => 4e-2,
    };
    run_chains(&chains, &mut memory, |memory, launch| {
        let what = format!("{} {shape:?}", launch.kernel.name);
        assert_close(&Tensor::download(dtype, memory, conv.y, expected.len()), &expected, tolerance, &what);
    });
    if !transposed {
        check_nhwc(shape, &conv, types, &tensors, &expected, tolerance);
    }
}

/// Of a depth that is split.
const PARTS: u32 = 3;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_kernel_and_block_equals_direct_sums(shape in shapes()) {
        for math in [Math::F32, Math::Tf32, Math::F16] {
            check(&shape, false, math);
        }
    }

    #[test]
    fn transposed_ones_equal_scattered_sums(shape in shapes()) {
        check(&shape, true, Math::F32);
        check(&shape, true, Math::F16);
    }
}

#[test]
fn depthwise_kernels_of_known_size_equal_direct_sums_in_both_types() {
    for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2)] {
        let pictures = [([1, 1], 2, 2), ([7, 9], 1, 1), ([12, 6], kernel as i32 / 2, 0)];
        for ((input, pad, behind), groups) in pictures.into_iter().flat_map(|picture| [(picture, 5), (picture, 12)]) {
            let shape = Shape {
                images: 2,
                groups,
                group_channels: 1,
                group_filters: 1,
                input,
                kernel: [kernel; 2],
                strides: [stride; 2],
                dilations: [1; 2],
                pads: [pad; 2],
                pads_behind: [behind; 2],
            };
            check(&shape, false, Math::F32);
            check(&shape, false, Math::F16);
        }
    }
}

#[test]
fn a_convolution_of_pixels_becomes_a_product() {
    let shape = Shape {
        images: 2,
        groups: 1,
        group_channels: 5,
        group_filters: 18,
        input: [12, 13],
        kernel: [1; 2],
        strides: [1; 2],
        dilations: [1; 2],
        pads: [0; 2],
        pads_behind: [0; 2],
    };
    check(&shape, false, Math::F32);
    let mut memory = Memory::default();
    let tensors = [1, 1, 1, 1].map(|count| Tensor::random(&mut Numbers::new(1), count, Float::F32));
    let launch = conv(&shape, shape.input, Math::F32, [Float::F32; 4], &mut memory, &tensors).launch().unwrap();
    assert!(launch.kernel.name.starts_with("rota_gemm"));
}

#[test]
fn a_kernel_as_large_as_the_picture_becomes_a_dense_layer() {
    for (size, images) in [(1, 3), (3, 12)] {
        let shape = Shape {
            images,
            groups: 1,
            group_channels: 7,
            group_filters: 10,
            input: [size, size + 1],
            kernel: [size, size + 1],
            strides: [1; 2],
            dilations: [1; 2],
            pads: [0; 2],
            pads_behind: [0; 2],
        };
        for math in [Math::F32, Math::Tf32, Math::F16] {
            check(&shape, false, math);
        }
    }
}

#[test]
fn groups_that_do_not_divide_are_refused() {
    let mut memory = Memory::default();
    let tensors = [1, 1, 1, 1].map(|count| Tensor::random(&mut Numbers::new(1), count, Float::F32));
    let shape = Shape {
        images: 1,
        groups: 1,
        group_channels: 5,
        group_filters: 4,
        input: [3; 2],
        kernel: [1; 2],
        strides: [1; 2],
        dilations: [1; 2],
        pads: [0; 2],
        pads_behind: [0; 2],
    };
    let conv =
        Conv { groups: 2, y: Pointer(16), ..conv(&shape, [3, 3], Math::F32, [Float::F32; 4], &mut memory, &tensors) };
    assert_eq!(conv.launch().unwrap_err().to_string(), "conv: 5 channels and 4 filters can't be split into 2 groups");
    assert!(Host::load().is_ok());
}
