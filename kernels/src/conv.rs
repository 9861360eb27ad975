//! Convolutions of NCHW pictures: `conv.cu`, `conv_mma.cu`, `depthwise.cu`, `conv_transpose.cu`, and `gemm.cu` for those of one pixel.

use crate::dtype::Math;
use crate::epilogue::Epilogue;
use crate::gemm::{Gemm, Matrix, Tile, choose, tile};
use crate::launch::{Cost, GRID_YZ_MAX, Kernel, Launch, Unfit, fit, spread};
use crate::params::{ConvParams, Divider, Pointer};
use crate::split::{Cut, MULTIPROCESSORS, Split};

/// Tiles of the implicit matrix product for f32, tf32 and f16, the largest first.
pub(crate) static TILES: [[Tile; 3]; 3] = [
    [
        tile::<ConvParams>("rota_conv_f32_128x64", &[256], [128, 64, 16]),
        tile::<ConvParams>("rota_conv_f32_64x64", &[256], [64, 64, 16]),
        tile::<ConvParams>("rota_conv_f32_16x64", &[128], [16, 64, 32]),
    ],
    [
        tile::<ConvParams>("rota_conv_tf32_128x64", &[256], [128, 64, 16]),
        tile::<ConvParams>("rota_conv_tf32_64x64", &[128], [64, 64, 16]),
        tile::<ConvParams>("rota_conv_tf32_32x64", &[64], [32, 64, 16]),
    ],
    [
        tile::<ConvParams>("rota_conv_f16_128x64", &[256], [128, 64, 32]),
        tile::<ConvParams>("rota_conv_f16_64x64", &[128], [64, 64, 32]),
        tile::<ConvParams>("rota_conv_f16_32x64", &[64], [32, 64, 32]),
    ],
];

const BLOCKS: &[u32] = &[32, 64, 128];

/// By element type: 3x3, 3x3 of stride 2, 5x5, 5x5 of stride 2, any other.
pub(crate) static DEPTHWISE: [[Kernel; 5]; 2] = [
    [
        Kernel::new::<ConvParams>("rota_depthwise_f32_3x3", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_3x3_stride2", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_5x5", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_5x5_stride2", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_any", BLOCKS),
    ],
    [
        Kernel::new::<ConvParams>("rota_depthwise_f16_3x3", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_3x3_stride2", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_5x5", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_5x5_stride2", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_any", BLOCKS),
    ],
];

/// By element type.
pub(crate) static TRANSPOSE: [Kernel; 2] = [
    Kernel::new::<ConvParams>("rota_conv_transpose_f32", BLOCKS),
    Kernel::new::<ConvParams>("rota_conv_transpose_f16", BLOCKS),
];

/// A convolution or, read backwards, a transposed one. Of one dimension: height and kernel height 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv {
    /// How it multiplies, and so the element type of all tensors; not bf16. Depthwise and transposed ones multiply in f32.
    pub math: Math,
    /// Pictures in the batch.
    pub images: u32,
    /// Channels of the input, of all groups together.
    pub channels: u32,
    /// Height and width of the input.
    pub input: [u32; 2],
    /// Channels of the output, of all groups together.
    pub filters: u32,
    /// Height and width of the output.
    pub output: [u32; 2],
    /// Groups; as many as channels for a depthwise convolution.
    pub groups: u32,
    /// Height and width of the kernel.
    pub kernel: [u32; 2],
    /// Down and across.
    pub strides: [u32; 2],
    /// Down and across.
    pub dilations: [u32; 2],
    /// Above and to the left; below and to the right follows from the output's size.
    pub pads: [i32; 2],
    /// `[images, channels, height, width]`
    pub x: Pointer,
    /// `[filters, channels / groups, height, width]` of kernels; transposed: `[channels, filters / groups, …]`.
    pub w: Pointer,
    /// `[images, filters, height, width]`
    pub y: Pointer,
    /// What happens to each sum; the bias is per filter, whatever its strides say.
    pub epilogue: Epilogue,
}

impl Conv {
    /// The launch of the kernel that suits the shapes.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.check()?;
        if self.groups > 1 && self.groups == self.channels {
            return self.depthwise(self.depthwise_kernel(), 128);
        }
        if let Some(gemm) = self.as_gemm() {
            return gemm.launch();
        }
        self.implicit(self.tile(MULTIPROCESSORS)?, Cut::whole(self.depth()?), Pointer::NONE)
    }

    /// The launches, in order, for a GPU of that many multiprocessors, as [`Gemm::launches_on`] gives them.
    pub fn launches_on(&self, multiprocessors: u32, room: impl FnOnce(u64) -> Pointer) -> Result<Vec<Launch>, Unfit> {
        self.check()?;
        if self.groups > 1 && self.groups == self.channels {
            return Ok(vec![self.launch()?]);
        }
        if let Some(gemm) = self.as_gemm() {
            return gemm.launches_on(multiprocessors, room);
        }
        let (tile, depth) = (self.tile(multiprocessors)?, self.depth()?);
        let tiles = tile.count(self.filters / self.groups, self.columns()?) * u64::from(self.groups);
        match Cut::best(tiles, depth, tile, multiprocessors) {
            cut @ Cut { parts: 1, .. } => Ok(vec![self.implicit(tile, cut, Pointer::NONE)?]),
            cut => Ok(self.split(tile, cut, room(self.sums_cost(cut.parts).bytes_written))?.to_vec()),
        }
    }

    /// A launch of every kernel and block that can do it, for tests that have to see them all.
    pub fn launches(&self) -> Result<Vec<Launch>, Unfit> {
        self.check()?;
        let mut all = Vec::new();
        if self.groups > 1 && self.groups == self.channels {
            let kernels = &DEPTHWISE[self.element()];
            for kernel in [self.depthwise_kernel(), &kernels[kernels.len() - 1]] {
                for &threads in kernel.blocks {
                    all.push(self.depthwise(kernel, threads)?);
                }
            }
        }
        if let Some(gemm) = self.as_gemm() {
            all.extend(gemm.launches()?);
        }
        for tile in &TILES[self.math as usize] {
            all.push(self.implicit(tile, Cut::whole(self.depth()?), Pointer::NONE)?);
        }
        Ok(all)
    }

    /// The two launches with each tile of the implicit product, with the depth in up to `parts`, for the same. `partial` has room for that many
    /// outputs' sums in f32.
    pub fn split_launches(&self, parts: u32, partial: Pointer) -> Result<Vec<[Launch; 2]>, Unfit> {
        self.check()?;
        let depth = self.depth()?;
        let split = |tile: &'static Tile| self.split(tile, Cut::into_parts(depth, tile.depth, parts), partial);
        TILES[self.math as usize].iter().map(split).collect()
    }

    /// The launch of the transposed convolution.
    pub fn launch_transposed(&self) -> Result<Launch, Unfit> {
        self.launch_transposed_with(128)
    }

    /// The same with a block of `threads`.
    pub fn launch_transposed_with(&self, threads: u32) -> Result<Launch, Unfit> {
        self.check()?;
        let fours = self.groups * (self.filters / self.groups).div_ceil(4);
        let pixels = self.output_pixels();
        let work = fit("conv transpose", "outputs", u64::from(self.images) * u64::from(fours) * u64::from(pixels))?;
        let mut params = self.params()?;
        params.by_filters = Divider::by(fours);
        let elements = u64::from(self.images) * u64::from(self.channels) * self.input_pixels();
        let taps = u64::from(self.filters / self.groups) * u64::from(self.kernel[0] * self.kernel[1]);
        let weights = u64::from(self.channels) * taps;
        let cost = self.cost(weights, 2 * elements * taps);
        Ok(Launch::new(&TRANSPOSE[self.element()], spread(work, threads), threads, params, cost))
    }

    fn check(&self) -> Result<(), Unfit> {
        let unfit = |what: String| Err(Unfit::Unsupported { kernel: "conv", what });
        if self.math == Math::Bf16 {
            return unfit("there are no convolutions of bf16".to_string());
        }
        let (channels, filters, groups) = (self.channels, self.filters, self.groups);
        if groups == 0 || !channels.is_multiple_of(groups) || !filters.is_multiple_of(groups) {
            return unfit(format!("{channels} channels and {filters} filters can't be split into {groups} groups"));
        }
        if self.kernel.contains(&0) || self.strides.contains(&0) || self.dilations.contains(&0) {
            return unfit("kernel sizes, strides and dilations have to be 1 or more".to_string());
        }
        Ok(())
    }

    /// The index of this element type among the kernels that there are.
    fn element(&self) -> usize {
        usize::from(self.math == Math::F16)
    }

    fn bytes(&self) -> u64 {
        self.math.storage().bytes()
    }

    fn output_pixels(&self) -> u32 {
        self.output[0] * self.output[1]
    }

    fn input_pixels(&self) -> u64 {
        u64::from(self.input[0]) * u64::from(self.input[1])
    }

    fn columns(&self) -> Result<u32, Unfit> {
        fit("conv", "pixels of all pictures", u64::from(self.images) * u64::from(self.output_pixels()))
    }

    /// The same as a matrix product, if it is a plain one.
    ///
    /// A kernel as large as the picture makes a dense layer. One of a single pixel is a product per picture, whose loads are wider than
    /// those of patches; with few pixels, though, tiles across pictures waste less.
    fn as_gemm(&self) -> Option<Gemm> {
        if self.groups != 1 || self.strides != [1, 1] || self.pads != [0, 0] {
            return None;
        }
        let (filters, pixels) = (self.filters, self.output_pixels());
        let gemm = |epilogue| Gemm {
            math: self.math,
            rows: 0,
            columns: 0,
            depth: self.channels * self.kernel[0] * self.kernel[1],
            batches: [1, 1],
            a: Matrix::row_major(self.w, self.channels),
            b: Matrix::row_major(self.x, pixels),
            c: Matrix::row_major(self.y, pixels),
            epilogue,
        };
        if self.kernel == self.input && self.output == [1, 1] && self.dilations == [1, 1] {
            let dense = gemm(Epilogue { bias_row: 0, bias_column: 1, ..self.epilogue });
            return Some(Gemm {
                rows: self.images,
                columns: filters,
                a: Matrix::row_major(self.x, dense.depth),
                b: Matrix::transposed(self.w, dense.depth),
                c: Matrix::row_major(self.y, filters),
                ..dense
            });
        }
        if self.kernel != [1, 1] || pixels < PIXELS_PER_GEMM || self.input != self.output {
            return None;
        }
        let each = |matrix: Matrix, planes: u32| matrix.batched([0, u64::from(planes) * u64::from(pixels)]);
        let plain = gemm(Epilogue { bias_row: 1, bias_column: 0, ..self.epilogue });
        Some(Gemm {
            rows: filters,
            columns: pixels,
            batches: [1, self.images],
            b: each(plain.b, self.channels),
            c: each(plain.c, filters),
            ..plain
        })
    }

    fn depthwise_kernel(&self) -> &'static Kernel {
        let kernels = &DEPTHWISE[self.element()];
        match (self.kernel, self.strides, self.dilations) {
            ([3, 3], [1, 1], [1, 1]) => &kernels[0],
            ([3, 3], [2, 2], [1, 1]) => &kernels[1],
            ([5, 5], [1, 1], [1, 1]) => &kernels[2],
            ([5, 5], [2, 2], [1, 1]) => &kernels[3],
            _ => &kernels[4],
        }
    }

    fn depthwise(&self, kernel: &'static Kernel, threads: u32) -> Result<Launch, Unfit> {
        let across = self.output[1].div_ceil(4);
        let rows = u64::from(self.images) * u64::from(self.filters) * u64::from(self.output[0]);
        let work = fit("depthwise", "fours of outputs", rows * u64::from(across))?;
        Ok(Launch::new(kernel, spread(work, threads), threads, self.params()?, self.forward_cost()))
    }

    fn tile(&self, multiprocessors: u32) -> Result<&'static Tile, Unfit> {
        let matrix = [self.filters / self.groups, self.columns()?, self.depth()?];
        Ok(choose(&TILES[self.math as usize], matrix, u64::from(self.groups), multiprocessors))
    }

    /// Products per output.
    fn depth(&self) -> Result<u32, Unfit> {
        let taps = u64::from(self.kernel[0]) * u64::from(self.kernel[1]);
        fit("conv", "channels times kernel", u64::from(self.channels / self.groups) * taps)
    }

    /// The implicit product. The sums go to `partial`, if there is one, and nothing else is done.
    fn implicit(&self, tile: &'static Tile, cut: Cut, partial: Pointer) -> Result<Launch, Unfit> {
        let columns = self.columns()?;
        let blocks = fit("conv", "number of tiles", tile.count(self.filters / self.groups, columns))?;
        let grid = [blocks, u64::from(self.groups).min(GRID_YZ_MAX) as u32, cut.parts];
        let (whole, cost) = match partial.is_some() {
            true => {
                let sums = Conv { y: Pointer::NONE, epilogue: Epilogue::default(), ..*self };
                (sums, Cost { bytes_written: 0, ..sums.forward_cost() } + self.sums_cost(cut.parts))
            }
            false => (*self, self.forward_cost()),
        };
        let params = ConvParams { partial, split_depth: cut.depth, ..whole.params()? };
        Ok(Launch::new(&tile.kernel, grid, tile.kernel.blocks[0], params, cost))
    }

    /// The parts' sums in `partial`, and what makes the output of them.
    fn split(&self, tile: &'static Tile, cut: Cut, partial: Pointer) -> Result<[Launch; 2], Unfit> {
        let pixels = self.output_pixels();
        let split = Split {
            dtype: self.math.storage(),
            parts: cut.parts,
            partial,
            dims: [1, self.filters, self.images, pixels],
            y: self.y,
            y_strides: [0, u64::from(pixels), u64::from(self.filters) * u64::from(pixels), 1],
            bias_strides: [0, 1, 0, 0],
            epilogue: &self.epilogue,
        };
        let (elements, flops) = self.epilogue_cost();
        let bytes = self.bytes();
        let outputs = Cost { bytes_read: bytes * elements, bytes_written: bytes * self.outputs(), flops };
        Ok([self.implicit(tile, cut, partial)?, split.launch(outputs)?])
    }

    fn outputs(&self) -> u64 {
        u64::from(self.images) * u64::from(self.filters) * u64::from(self.output_pixels())
    }

    /// Of leaving the sums of that many parts.
    fn sums_cost(&self, parts: u32) -> Cost {
        Cost { bytes_written: 4 * u64::from(parts) * self.outputs(), ..Cost::default() }
    }

    fn params(&self) -> Result<ConvParams, Unfit> {
        let group_channels = self.channels / self.groups;
        let depth = self.depth()?;
        let elements = u64::from(self.images) * u64::from(self.channels) * self.input_pixels();
        fit("conv", "number of elements of the input", elements)?;
        let by = |divisor: u32| Divider::by(divisor.max(1));
        Ok(ConvParams {
            x: self.x,
            w: self.w,
            y: self.y,
            bias: self.epilogue.bias,
            residual: self.epilogue.residual,
            partial: Pointer::NONE,
            images: self.images,
            channels: self.channels,
            height: self.input[0],
            width: self.input[1],
            filters: self.filters,
            out_height: self.output[0],
            out_width: self.output[1],
            groups: self.groups,
            group_channels,
            group_filters: self.filters / self.groups,
            kernel_height: self.kernel[0],
            kernel_width: self.kernel[1],
            stride_y: self.strides[0],
            stride_x: self.strides[1],
            dilation_y: self.dilations[0],
            dilation_x: self.dilations[1],
            pad_top: self.pads[0],
            pad_left: self.pads[1],
            w_vector: u32::from(depth.is_multiple_of(4) && self.w.0.is_multiple_of(4 * self.bytes())),
            by_out_pixels: by(self.output_pixels()),
            by_out_width: by(self.output[1]),
            by_out_height: by(self.output[0]),
            by_kernel_area: by(self.kernel[0] * self.kernel[1]),
            by_kernel_width: by(self.kernel[1]),
            by_filters: by(self.filters),
            by_across: by(self.output[1].div_ceil(4)),
            split_depth: depth,
            reserved: 0,
            epilogue: self.epilogue.params(),
        })
    }

    fn forward_cost(&self) -> Cost {
        let taps = u64::from(self.channels / self.groups) * u64::from(self.kernel[0] * self.kernel[1]);
        self.cost(u64::from(self.filters) * taps, 2 * self.outputs() * taps)
    }

    fn cost(&self, weights: u64, flops: u64) -> Cost {
        let inputs = u64::from(self.images) * u64::from(self.channels) * self.input_pixels();
        let (elements, operations) = self.epilogue_cost();
        Cost {
            bytes_read: self.bytes() * (inputs + weights + elements),
            bytes_written: self.bytes() * self.outputs(),
            flops: flops + operations,
        }
    }

    /// Elements that the epilogue reads, and its operations.
    fn epilogue_cost(&self) -> (u64, u64) {
        let columns = u64::from(self.images) * u64::from(self.output_pixels());
        let epilogue = Epilogue { bias_row: 1, bias_column: 0, ..self.epilogue };
        epilogue.cost(1, u64::from(self.filters), columns)
    }
}

/// Pictures of fewer pixels share tiles with their neighbours in the batch.
const PIXELS_PER_GEMM: u32 = 128;
