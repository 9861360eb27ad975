//! Convolutions: `conv.cu`, `conv_mma.cu`, `depthwise.cu`, each also for NHWC (`*_nhwc.cu`), `conv_transpose.cu`, and `gemm.cu` for those of
//! one pixel.

mod kernels;

pub(crate) use kernels::{DEPTHWISE, DEPTHWISE_NHWC, TILES, TILES_NHWC, TRANSPOSE};

use crate::dtype::{Layout, Math};
use crate::epilogue::Epilogue;
use crate::gemm::{Gemm, Matrix, Tile, choose};
use crate::launch::{Cost, GRID_YZ_MAX, Kernel, Launch, Unfit, fit, spread};
use crate::params::{ConvParams, Divider, Pointer};
use crate::split::{Cut, MULTIPROCESSORS, Split};

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
    /// How the output and the residual lie; transposed ones have NCHW only. In NHWC, a depthwise convolution has as many filters as channels,
    /// a multiple of 4.
    pub layout: Layout,
    /// How the input lies: as the output does, or NCHW, which only a convolution that is not depthwise reads into NHWC.
    pub x_layout: Layout,
    /// `[images, channels, height, width]`, or channels last.
    pub x: Pointer,
    /// `[filters, channels / groups, height, width]` of kernels; f32 where [`Conv::is_depthwise`]. NHWC: channels last, `[height, width,
    /// channels]` for a depthwise one. Transposed: `[channels, filters / groups, …]`.
    pub w: Pointer,
    /// `[images, filters, height, width]`, or channels last.
    pub y: Pointer,
    /// What happens to each sum; the bias is per filter, whatever its strides say.
    pub epilogue: Epilogue,
}

impl Conv {
    /// The launch of the kernel that suits the shapes.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.check()?;
        if self.is_depthwise() {
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
        if self.is_depthwise() {
            return Ok(vec![self.launch()?]);
        }
        if let Some(gemm) = self.as_gemm() {
            return gemm.launches_on(multiprocessors, room);
        }
        let (tile, depth) = (self.tile(multiprocessors)?, self.depth()?);
        let (rows, columns) = self.product()?;
        let tiles = tile.count(rows, columns) * u64::from(self.groups);
        match Cut::best(tiles, depth, tile, multiprocessors) {
            cut @ Cut { parts: 1, .. } => Ok(vec![self.implicit(tile, cut, Pointer::NONE)?]),
            cut => Ok(self.split(tile, cut, room(self.sums_cost(cut.parts).bytes_written))?.to_vec()),
        }
    }

    /// A launch of every kernel and block that can do it, for tests that have to see them all.
    pub fn launches(&self) -> Result<Vec<Launch>, Unfit> {
        self.check()?;
        let mut all = Vec::new();
        if self.is_depthwise() {
            let kernels = self.depthwise_kernels();
            for kernel in [self.depthwise_kernel(), &kernels[kernels.len() - 1]] {
                for &threads in kernel.blocks {
                    all.push(self.depthwise(kernel, threads)?);
                }
            }
            return Ok(all);
        }
        if let Some(gemm) = self.as_gemm() {
            all.extend(gemm.launches()?);
        }
        for tile in self.tiles() {
            all.push(self.implicit(tile, Cut::whole(self.depth()?), Pointer::NONE)?);
        }
        Ok(all)
    }

    /// Whether each filter sees one channel. Such a convolution, unless it is transposed, multiplies in f32, by weights in f32.
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.channels
    }

    /// Places in the input that the threads of [`Conv::launch`] have to work out: one for each element that a tile takes, or for four of them
    /// where they lie side by side. For tiles of 64 on both sides.
    pub fn places(&self) -> u64 {
        const SIDE: u64 = 64;
        let (images, filters) = (u64::from(self.images), u64::from(self.filters / self.groups.max(1)));
        let pixels = u64::from(self.output_pixels());
        let tiles = |size: u64| size.div_ceil(SIDE);
        let area = u64::from(self.kernel[0]) * u64::from(self.kernel[1]);
        if self.is_depthwise() {
            // A row of taps is read once for the outputs of a thread.
            let span = |outputs: u64| (outputs - 1) * u64::from(self.strides[1]) + u64::from(self.kernel[1]);
            let (outputs, each) = if self.layout == Layout::Nchw { (4, span(4)) } else { (8, span(2)) };
            return images * u64::from(self.filters) * pixels * u64::from(self.kernel[0]) * each / outputs;
        }
        let depth = u64::from(self.channels / self.groups.max(1)) * area;
        let plain = self.as_gemm().is_some();
        match self.layout {
            Layout::Nchw if plain => {
                images * tiles(filters) * tiles(pixels) * SIDE * depth / if pixels.is_multiple_of(4) { 4 } else { 1 }
            }
            Layout::Nchw => u64::from(self.groups) * tiles(filters) * tiles(images * pixels) * SIDE * depth,
            Layout::Nhwc => {
                let fours = self.x_layout == Layout::Nhwc && (self.channels / self.groups.max(1)).is_multiple_of(4);
                let all = u64::from(self.groups) * tiles(filters) * tiles(images * pixels) * SIDE * depth;
                if fours { all / 4 } else { all }
            }
        }
    }

    /// The two launches with each tile of the implicit product, with the depth in up to `parts`, for the same; none for a depthwise one.
    /// `partial` has room for that many outputs' sums in f32.
    pub fn split_launches(&self, parts: u32, partial: Pointer) -> Result<Vec<[Launch; 2]>, Unfit> {
        self.check()?;
        if self.is_depthwise() {
            return Ok(Vec::new());
        }
        let depth = self.depth()?;
        let split = |tile: &'static Tile| self.split(tile, Cut::into_parts(depth, tile.depth, parts), partial);
        self.tiles().iter().map(split).collect()
    }

    /// The launch of the transposed convolution.
    pub fn launch_transposed(&self) -> Result<Launch, Unfit> {
        self.launch_transposed_with(128)
    }

    /// The same with a block of `threads`.
    pub fn launch_transposed_with(&self, threads: u32) -> Result<Launch, Unfit> {
        self.check()?;
        if self.layout == Layout::Nhwc || self.x_layout == Layout::Nhwc {
            let what = "transposed ones have NCHW only".to_string();
            return Err(Unfit::Unsupported { kernel: "conv transpose", what });
        }
        let fours = self.groups * (self.filters / self.groups).div_ceil(4);
        let pixels = self.output_pixels();
        let work = fit("conv transpose", "outputs", u64::from(self.images) * u64::from(fours) * u64::from(pixels))?;
        let mut params = self.params()?;
        params.by_filters = Divider::by(fours);
        let elements = u64::from(self.images) * u64::from(self.channels) * self.input_pixels();
        let taps = u64::from(self.filters / self.groups) * u64::from(self.kernel[0] * self.kernel[1]);
        let weights = u64::from(self.channels) * taps;
        let cost = self.cost(self.bytes() * weights, 2 * elements * taps);
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
        if self.layout == Layout::Nchw && self.x_layout == Layout::Nhwc {
            return unfit("a picture of NHWC is not read into one of NCHW".to_string());
        }
        let fours = channels == filters && channels.is_multiple_of(4) && self.x_layout == self.layout;
        if self.layout == Layout::Nhwc && self.is_depthwise() && !fours {
            return unfit(format!(
                "in NHWC, {channels} channels and {filters} filters of one channel each have no kernel"
            ));
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
        if self.layout == Layout::Nhwc {
            return self.as_gemm_of_pixels();
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

    /// In NHWC: the pixels of all pictures are the rows of one matrix.
    fn as_gemm_of_pixels(&self) -> Option<Gemm> {
        let dense = self.kernel == self.input && self.output == [1, 1] && self.dilations == [1, 1];
        let pixels = self.kernel == [1, 1] && self.input == self.output;
        if !(dense || pixels) || self.x_layout != self.layout {
            return None;
        }
        let depth = self.channels * self.kernel[0] * self.kernel[1];
        Some(Gemm {
            math: self.math,
            rows: self.columns().ok()?,
            columns: self.filters,
            depth,
            batches: [1, 1],
            a: Matrix::row_major(self.x, depth),
            b: Matrix::transposed(self.w, depth),
            c: Matrix::row_major(self.y, self.filters),
            epilogue: Epilogue { bias_row: 0, bias_column: 1, ..self.epilogue },
        })
    }

    fn depthwise_kernels(&self) -> &'static [Kernel; 5] {
        match self.layout {
            Layout::Nchw => &DEPTHWISE[self.element()],
            Layout::Nhwc => &DEPTHWISE_NHWC[self.element()],
        }
    }

    fn tiles(&self) -> &'static [Tile; 3] {
        match self.layout {
            Layout::Nchw => &TILES[self.math as usize],
            Layout::Nhwc => &TILES_NHWC[self.math as usize],
        }
    }

    /// Rows and columns of a group's implicit product.
    fn product(&self) -> Result<(u32, u32), Unfit> {
        let (filters, pixels) = (self.filters / self.groups, self.columns()?);
        Ok(if self.layout == Layout::Nchw { (filters, pixels) } else { (pixels, filters) })
    }

    fn depthwise_kernel(&self) -> &'static Kernel {
        let kernels = self.depthwise_kernels();
        match (self.kernel, self.strides, self.dilations) {
            ([3, 3], [1, 1], [1, 1]) => &kernels[0],
            ([3, 3], [2, 2], [1, 1]) => &kernels[1],
            ([5, 5], [1, 1], [1, 1]) => &kernels[2],
            ([5, 5], [2, 2], [1, 1]) => &kernels[3],
            _ => &kernels[4],
        }
    }

    fn depthwise(&self, kernel: &'static Kernel, threads: u32) -> Result<Launch, Unfit> {
        let mut params = self.params()?;
        if self.layout == Layout::Nhwc {
            params.by_filters = Divider::by(self.filters / 4);
            params.by_across = Divider::by(self.output[1].div_ceil(2).max(1));
        }
        let rows = u64::from(self.images) * u64::from(params.by_filters.divisor) * u64::from(self.output[0]);
        let work = fit("depthwise", "groups of outputs", rows * u64::from(params.by_across.divisor))?;
        Ok(Launch::new(kernel, spread(work, threads), threads, params, self.forward_cost()))
    }

    fn tile(&self, multiprocessors: u32) -> Result<&'static Tile, Unfit> {
        let (rows, columns) = self.product()?;
        Ok(choose(self.tiles(), [rows, columns, self.depth()?], u64::from(self.groups), multiprocessors))
    }

    /// Products per output.
    fn depth(&self) -> Result<u32, Unfit> {
        let taps = u64::from(self.kernel[0]) * u64::from(self.kernel[1]);
        fit("conv", "channels times kernel", u64::from(self.channels / self.groups) * taps)
    }

    /// The implicit product. The sums go to `partial`, if there is one, and nothing else is done.
    fn implicit(&self, tile: &'static Tile, cut: Cut, partial: Pointer) -> Result<Launch, Unfit> {
        let (rows, columns) = self.product()?;
        let blocks = fit("conv", "number of tiles", tile.count(rows, columns))?;
        if u64::from(self.groups) > GRID_YZ_MAX {
            let (what, value) = ("number of groups", u64::from(self.groups));
            return Err(Unfit::TooLarge { kernel: "conv", what, value, max: GRID_YZ_MAX });
        }
        let grid = [blocks, self.groups, cut.parts];
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
        let [image, pixel] = [u64::from(self.filters) * u64::from(pixels), u64::from(self.filters)];
        let (dims, y_strides, bias_strides) = match self.layout {
            Layout::Nchw => ([1, self.filters, self.images, pixels], [0, u64::from(pixels), image, 1], [0, 1, 0, 0]),
            Layout::Nhwc => ([1, self.images, pixels, self.filters], [0, image, pixel, 1], [0, 0, 0, 1]),
        };
        let split = Split {
            dtype: self.math.storage(),
            parts: cut.parts,
            partial,
            dims,
            y: self.y,
            y_strides,
            bias_strides,
            epilogue: &self.epilogue,
        };
        let (bytes_read, flops) = self.epilogue_cost();
        let outputs = Cost { bytes_read, bytes_written: self.bytes() * self.outputs(), flops };
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
        let [height, width] = self.input;
        let [image, channel, row, pixel] = match self.x_layout {
            Layout::Nchw => [self.channels * height * width, height * width, width, 1],
            Layout::Nhwc => [height * width * self.channels, 1, width * self.channels, self.channels],
        };
        let fours = [group_channels, image, row, pixel].iter().all(|size| size.is_multiple_of(4));
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
            x_image: image,
            x_channel: channel,
            x_row: row,
            x_pixel: pixel,
            x_vector: u32::from(channel == 1 && fours && self.x.0.is_multiple_of(4 * self.bytes())),
            by_out_pixels: by(self.output_pixels()),
            by_out_width: by(self.output[1]),
            by_out_height: by(self.output[0]),
            by_kernel_area: by(self.kernel[0] * self.kernel[1]),
            by_kernel_width: by(self.kernel[1]),
            by_filters: by(self.filters),
            by_across: by(self.output[1].div_ceil(4)),
            by_group_channels: by(group_channels),
            split_depth: depth,
            reserved: 0,
            epilogue: self.epilogue.params(),
        })
    }

    fn forward_cost(&self) -> Cost {
        let taps = u64::from(self.channels / self.groups) * u64::from(self.kernel[0] * self.kernel[1]);
        let weight = if self.is_depthwise() { 4 } else { self.bytes() };
        self.cost(weight * u64::from(self.filters) * taps, 2 * self.outputs() * taps)
    }

    fn cost(&self, weight_bytes: u64, flops: u64) -> Cost {
        let inputs = u64::from(self.images) * u64::from(self.channels) * self.input_pixels();
        let (more, operations) = self.epilogue_cost();
        Cost {
            bytes_read: self.bytes() * inputs + weight_bytes + more,
            bytes_written: self.bytes() * self.outputs(),
            flops: flops + operations,
        }
    }

    /// Bytes that the epilogue reads, and its operations.
    fn epilogue_cost(&self) -> (u64, u64) {
        let columns = u64::from(self.images) * u64::from(self.output_pixels());
        let epilogue = Epilogue { bias_row: 1, bias_column: 0, ..self.epilogue };
        epilogue.cost(self.bytes(), 1, u64::from(self.filters), columns)
    }
}

/// Pictures of fewer pixels share tiles with their neighbours in the batch.
const PIXELS_PER_GEMM: u32 = 128;
