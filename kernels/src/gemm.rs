//! Matrix products: `gemm.cu`, `gemm_mma.cu`, `gemm_async.cu` and `gemv.cu`; with `split.cu` where a depth is split.

use crate::dtype::Math;
use crate::epilogue::Epilogue;
use crate::launch::{Cost, GRID_YZ_MAX, Kernel, Launch, Unfit, fit};
use crate::params::{GemmParams, Params, Pointer};
use crate::split::{Cut, MULTIPROCESSORS, Split};

/// A kernel whose block of `threads` computes `rows` x `columns` in steps of `depth`.
pub(crate) const fn tile<P: Params>(
    name: &'static str,
    threads: &'static [u32],
    [rows, columns, depth]: [u32; 3],
) -> Tile {
    Tile { kernel: Kernel::new::<P>(name, threads), rows, columns, depth, ahead: 1 }
}

/// For each [`Math`], the largest first.
pub(crate) static TILES: [[Tile; 3]; 4] = [
    [
        tile::<GemmParams>("rota_gemm_f32_128x64", &[256], [128, 64, 16]),
        tile::<GemmParams>("rota_gemm_f32_64x64", &[256], [64, 64, 16]),
        tile::<GemmParams>("rota_gemm_f32_16x64", &[128], [16, 64, 32]),
    ],
    [
        tile::<GemmParams>("rota_gemm_tf32_128x64", &[256], [128, 64, 16]),
        tile::<GemmParams>("rota_gemm_tf32_64x64", &[128], [64, 64, 16]),
        tile::<GemmParams>("rota_gemm_tf32_32x64", &[64], [32, 64, 16]),
    ],
    [
        tile::<GemmParams>("rota_gemm_f16_128x64", &[256], [128, 64, 32]),
        tile::<GemmParams>("rota_gemm_f16_64x64", &[128], [64, 64, 32]),
        tile::<GemmParams>("rota_gemm_f16_32x64", &[64], [32, 64, 32]),
    ],
    [
        tile::<GemmParams>("rota_gemm_bf16_128x64", &[256], [128, 64, 32]),
        tile::<GemmParams>("rota_gemm_bf16_64x64", &[128], [64, 64, 32]),
        tile::<GemmParams>("rota_gemm_bf16_32x64", &[64], [32, 64, 32]),
    ],
];

/// For operands that can be copied to shared memory as they are, by [`Math`] without f32, the largest first.
pub(crate) static ASYNC: [[Tile; 3]; 3] = [
    [
        tile::<GemmParams>("rota_gemm_tf32_128x64_async", &[256], [128, 64, 16]).ahead(2),
        tile::<GemmParams>("rota_gemm_tf32_64x64_async", &[128], [64, 64, 16]).ahead(3),
        tile::<GemmParams>("rota_gemm_tf32_32x64_async", &[64], [32, 64, 16]).ahead(3),
    ],
    [
        tile::<GemmParams>("rota_gemm_f16_128x64_async", &[256], [128, 64, 32]).ahead(2),
        tile::<GemmParams>("rota_gemm_f16_64x64_async", &[128], [64, 64, 32]).ahead(3),
        tile::<GemmParams>("rota_gemm_f16_32x64_async", &[64], [32, 64, 32]).ahead(3),
    ],
    [
        tile::<GemmParams>("rota_gemm_bf16_128x64_async", &[256], [128, 64, 32]).ahead(2),
        tile::<GemmParams>("rota_gemm_bf16_64x64_async", &[128], [64, 64, 32]).ahead(3),
        tile::<GemmParams>("rota_gemm_bf16_32x64_async", &[64], [32, 64, 32]).ahead(3),
    ],
];

/// Bytes of such a copy.
const COPY_BYTES: u64 = 16;

/// For products of a few rows, by what is stored (f32, f16, bf16): b read along the depth, or across its columns.
pub(crate) static FEW_ROWS: [[Tile; 2]; 3] = [
    [
        tile::<GemmParams>("rota_gemv_f32_deep", &[128], [FEW, 4, 128]),
        tile::<GemmParams>("rota_gemv_f32_wide", &[256], [FEW, 32, 32]),
    ],
    [
        tile::<GemmParams>("rota_gemv_f16_deep", &[128], [FEW, 4, 128]),
        tile::<GemmParams>("rota_gemv_f16_wide", &[256], [FEW, 32, 32]),
    ],
    [
        tile::<GemmParams>("rota_gemv_bf16_deep", &[128], [FEW, 4, 128]),
        tile::<GemmParams>("rota_gemv_bf16_wide", &[256], [FEW, 32, 32]),
    ],
];

/// Rows that `gemv.cu` takes at most.
const FEW: u32 = 8;

/// What one block of a kernel computes.
pub(crate) struct Tile {
    pub kernel: Kernel,
    pub rows: u32,
    pub columns: u32,
    /// Of a step.
    pub depth: u32,
    /// Steps whose loads are under way while one is multiplied.
    pub ahead: u32,
}

impl Tile {
    /// The same with so many steps' loads under way.
    pub(crate) const fn ahead(self, steps: u32) -> Tile {
        Tile { kernel: self.kernel, rows: self.rows, columns: self.columns, depth: self.depth, ahead: steps }
    }

    /// Blocks for one product.
    pub(crate) fn count(&self, rows: u32, columns: u32) -> u64 {
        u64::from(rows.div_ceil(self.rows)) * u64::from(columns.div_ceil(self.columns))
    }
}

/// The largest tile that still makes a block for each of `multiprocessors` and of which more than half is used.
///
/// Else multiprocessors stay without one. Then the depth of the middle tile is shared, where that is worth it; where it is not, the smallest
/// tile is no slower in any block, and there are more of them. What has few rows has the smallest in any case.
pub(crate) fn choose(
    tiles: &'static [Tile; 3],
    [rows, columns, depth]: [u32; 3],
    batches: u64,
    multiprocessors: u32,
) -> &'static Tile {
    let blocks = |tile: &Tile| tile.count(rows, columns) * batches;
    let enough = u64::from(multiprocessors);
    let fits = |tile: &&Tile| rows * 2 > tile.rows && columns * 2 > tile.columns && blocks(tile) >= enough;
    let [.., middle, smallest] = tiles;
    let cut = || Cut::best(blocks(middle), depth, middle, multiprocessors).parts > 1;
    let spread = || blocks(smallest) <= enough && !cut();
    tiles.iter().find(fits).unwrap_or(if rows <= smallest.rows || spread() { smallest } else { middle })
}

/// One operand: where it begins and how far apart, in elements, its neighbours are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matrix {
    /// The first element of the first batch.
    pub pointer: Pointer,
    /// Per row.
    pub row: u32,
    /// Per column.
    pub column: u32,
    /// Per step of the outer and the inner batch axis; 0 where all share one matrix.
    pub batch: [u64; 2],
}

impl Matrix {
    /// Row-major, `columns` wide, one batch.
    pub fn row_major(pointer: Pointer, columns: u32) -> Matrix {
        Matrix { pointer, row: columns, column: 1, batch: [0, 0] }
    }

    /// The transpose of a row-major matrix whose rows are `width` long.
    pub fn transposed(pointer: Pointer, width: u32) -> Matrix {
        Matrix { pointer, row: 1, column: width, batch: [0, 0] }
    }

    /// The same with these batch strides.
    pub fn batched(self, batch: [u64; 2]) -> Matrix {
        Matrix { batch, ..self }
    }

    /// Whether groups of so many elements along the stride of 1 are aligned and end with the matrix.
    fn aligned(&self, [rows, columns]: [u32; 2], element_bytes: u64, elements: u64) -> bool {
        let (along, across) = if self.column == 1 { (columns, self.row) } else { (rows, self.column) };
        (self.column == 1 || self.row == 1)
            && self.pointer.0.is_multiple_of(elements * element_bytes)
            && [u64::from(along), u64::from(across)].iter().all(|size| size.is_multiple_of(elements))
            && self.batch.iter().all(|stride| stride.is_multiple_of(elements))
    }
}

/// c = epilogue(a b) for every pair of batch indices.
///
/// `a` is rows x depth, `b` depth x columns, `c` rows x columns with a column stride of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    /// How it multiplies, and so the element type of all tensors.
    pub math: Math,
    /// Rows of `a` and `c`.
    pub rows: u32,
    /// Columns of `b` and `c`.
    pub columns: u32,
    /// Columns of `a`, rows of `b`.
    pub depth: u32,
    /// Outer and inner batch axis.
    pub batches: [u32; 2],
    /// Left operand.
    pub a: Matrix,
    /// Right operand.
    pub b: Matrix,
    /// Output.
    pub c: Matrix,
    /// What happens to each sum.
    pub epilogue: Epilogue,
}

impl Gemm {
    /// The launch of the whole depth, with the tile that suits the shapes.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.launch_with(self.tile(MULTIPROCESSORS), Cut::whole(self.depth), Pointer::NONE)
    }

    /// The launches, in order, for a GPU of that many multiprocessors: one, or, where few tiles have much depth, one that shares the depth
    /// among more blocks and one that adds up what they leave. `room` gives memory for that many bytes of sums, and is asked only then.
    pub fn launches_on(&self, multiprocessors: u32, room: impl FnOnce(u64) -> Pointer) -> Result<Vec<Launch>, Unfit> {
        let tile = self.tile(multiprocessors);
        let tiles = tile.count(self.rows, self.columns) * self.batch_count();
        match Cut::best(tiles, self.depth, tile, multiprocessors) {
            cut @ Cut { parts: 1, .. } => Ok(vec![self.launch_with(tile, cut, Pointer::NONE)?]),
            cut => Ok(self.split_with(tile, cut, room(self.sums_cost(cut.parts).bytes_written))?.to_vec()),
        }
    }

    /// The launch with each tile that there is, for tests that have to see them all.
    pub fn launches(&self) -> Result<Vec<Launch>, Unfit> {
        self.tiles().map(|tile| self.launch_with(tile, Cut::whole(self.depth), Pointer::NONE)).collect()
    }

    /// The two launches with each tile, with the depth in up to `parts`, for the same. `partial` has room for that many outputs' sums in f32.
    pub fn split_launches(&self, parts: u32, partial: Pointer) -> Result<Vec<[Launch; 2]>, Unfit> {
        let split =
            |tile: &'static Tile| self.split_with(tile, Cut::into_parts(self.depth, tile.depth, parts), partial);
        self.tiles().map(split).collect()
    }

    fn tile(&self, multiprocessors: u32) -> &'static Tile {
        let tiles = self.copied().unwrap_or(&TILES[self.math as usize]);
        self.few_rows().unwrap_or_else(|| {
            choose(tiles, [self.rows, self.columns, self.depth], self.batch_count(), multiprocessors)
        })
    }

    fn tiles(&self) -> impl Iterator<Item = &'static Tile> {
        TILES[self.math as usize].iter().chain(self.copied().into_iter().flatten()).chain(self.few_rows())
    }

    /// The tiles that copy operands as they are, if these can be copied so.
    fn copied(&self) -> Option<&'static [Tile; 3]> {
        let tiles = match self.math {
            Math::F32 => return None,
            Math::Tf32 => &ASYNC[0],
            Math::F16 => &ASYNC[1],
            Math::Bf16 => &ASYNC[2],
        };
        let bytes = self.math.storage().bytes();
        let fit = self.a.column == 1
            && self.a.aligned([self.rows, self.depth], bytes, COPY_BYTES / bytes)
            && self.b.aligned([self.depth, self.columns], bytes, COPY_BYTES / bytes);
        fit.then_some(tiles)
    }

    fn batch_count(&self) -> u64 {
        u64::from(self.batches[0]) * u64::from(self.batches[1])
    }

    fn outputs(&self) -> u64 {
        self.batch_count() * u64::from(self.rows) * u64::from(self.columns)
    }

    /// The kernel for a few rows, if there are so few and b can be read along one of its axes.
    fn few_rows(&self) -> Option<&'static Tile> {
        let storage = match self.math {
            Math::F32 | Math::Tf32 => 0,
            Math::F16 => 1,
            Math::Bf16 => 2,
        };
        let [deep, wide] = &FEW_ROWS[storage];
        match (self.b.row, self.b.column) {
            _ if self.rows > FEW => None,
            (1, _) => Some(deep),
            (_, 1) => Some(wide),
            _ => None,
        }
    }

    /// The parts' sums in `partial`, and what makes the output of them.
    fn split_with(&self, tile: &'static Tile, cut: Cut, partial: Pointer) -> Result<[Launch; 2], Unfit> {
        let epilogue = &self.epilogue;
        let split = Split {
            dtype: self.math.storage(),
            parts: cut.parts,
            partial,
            dims: [self.batches[0], self.batches[1], self.rows, self.columns],
            y: self.c.pointer,
            y_strides: [self.c.batch[0], self.c.batch[1], u64::from(self.c.row), 1],
            bias_strides: [0, 0, epilogue.bias_row, epilogue.bias_column],
            epilogue,
        };
        let first = self.launch_with(tile, cut, partial)?;
        Ok([first, split.launch(self.outputs_cost())?])
    }

    /// The sums go to `partial`, if there is one, and nothing else is done.
    fn launch_with(&self, tile: &'static Tile, cut: Cut, partial: Pointer) -> Result<Launch, Unfit> {
        let batches = self.batch_count();
        fit("gemm", "batches", batches)?;
        let blocks = fit("gemm", "number of tiles", tile.count(self.rows, self.columns))?;
        if self.c.column != 1 {
            let what =
                format!("the output's columns are {} elements apart, they have to be side by side", self.c.column);
            return Err(Unfit::Unsupported { kernel: "gemm", what });
        }
        let (a_vector, b_vector) = self.vectors();
        let (c, epilogue, written) = match partial.is_some() {
            true => (Pointer::NONE, Epilogue::default(), self.sums_cost(cut.parts)),
            false => (self.c.pointer, self.epilogue, self.outputs_cost()),
        };
        let params = GemmParams {
            a: self.a.pointer,
            b: self.b.pointer,
            c,
            bias: epilogue.bias,
            residual: epilogue.residual,
            partial,
            a_outer: self.a.batch[0],
            a_inner: self.a.batch[1],
            b_outer: self.b.batch[0],
            b_inner: self.b.batch[1],
            c_outer: self.c.batch[0],
            c_inner: self.c.batch[1],
            rows: self.rows,
            columns: self.columns,
            depth: self.depth,
            batch_outer: self.batches[0],
            batch_inner: self.batches[1],
            a_row: self.a.row,
            a_depth: self.a.column,
            b_depth: self.b.row,
            b_column: self.b.column,
            c_row: self.c.row,
            a_vector,
            b_vector,
            split_depth: cut.depth,
            reserved: 0,
            epilogue: epilogue.params(),
        };
        let grid = [blocks, batches.min(GRID_YZ_MAX) as u32, cut.parts];
        Ok(Launch::new(&tile.kernel, grid, tile.kernel.blocks[0], params, self.products_cost() + written))
    }

    /// Whether fours of a and of b may be loaded at once, as the kernels want to be told.
    pub(crate) fn vectors(&self) -> (u32, u32) {
        let bytes = self.math.storage().bytes();
        let a = self.a.aligned([self.rows, self.depth], bytes, 4);
        let b = self.b.aligned([self.depth, self.columns], bytes, 4);
        (u32::from(a), u32::from(b))
    }

    /// What it costs with its depth whole.
    pub fn cost(&self) -> Cost {
        self.products_cost() + self.outputs_cost()
    }

    /// Of reading the operands and multiplying them.
    fn products_cost(&self) -> Cost {
        let [rows, columns, depth] = [self.rows, self.columns, self.depth].map(u64::from);
        // A stride of 0 means that the operand is read once for all batches.
        let copies = |matrix: &Matrix| -> u64 {
            (0..2).map(|axis| if matrix.batch[axis] == 0 { 1 } else { u64::from(self.batches[axis]) }).product()
        };
        let elements = copies(&self.a) * rows * depth + copies(&self.b) * depth * columns;
        let flops = 2 * self.outputs() * depth;
        Cost { bytes_read: self.math.storage().bytes() * elements, bytes_written: 0, flops }
    }

    /// Of leaving the sums of that many parts.
    fn sums_cost(&self, parts: u32) -> Cost {
        Cost { bytes_written: 4 * u64::from(parts) * self.outputs(), ..Cost::default() }
    }

    /// Of the epilogue, and of writing the output.
    fn outputs_cost(&self) -> Cost {
        let bytes = self.math.storage().bytes();
        let [rows, columns] = [self.rows, self.columns].map(u64::from);
        let (bytes_read, flops) = self.epilogue.cost(bytes, self.batch_count(), rows, columns);
        Cost { bytes_read, bytes_written: bytes * self.outputs(), flops }
    }
}
