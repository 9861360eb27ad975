//! Matrix products: `gemm.cu`, `gemm_mma.cu` and `gemv.cu`.

use crate::dtype::Math;
use crate::epilogue::Epilogue;
use crate::launch::{Cost, GRID_YZ_MAX, Kernel, Launch, Unfit, fit};
use crate::params::{GemmParams, Params, Pointer};

/// A kernel whose block of `threads` computes `rows` x `columns`.
pub(crate) const fn tile<P: Params>(name: &'static str, threads: &'static [u32], rows: u32, columns: u32) -> Tile {
    Tile { kernel: Kernel::new::<P>(name, threads), rows, columns }
}

/// For each [`Math`], the largest first.
pub(crate) static TILES: [[Tile; 3]; 4] = [
    [
        tile::<GemmParams>("rota_gemm_f32_128x64", &[256], 128, 64),
        tile::<GemmParams>("rota_gemm_f32_64x64", &[256], 64, 64),
        tile::<GemmParams>("rota_gemm_f32_16x64", &[128], 16, 64),
    ],
    [
        tile::<GemmParams>("rota_gemm_tf32_128x64", &[256], 128, 64),
        tile::<GemmParams>("rota_gemm_tf32_64x64", &[128], 64, 64),
        tile::<GemmParams>("rota_gemm_tf32_32x64", &[64], 32, 64),
    ],
    [
        tile::<GemmParams>("rota_gemm_f16_128x64", &[256], 128, 64),
        tile::<GemmParams>("rota_gemm_f16_64x64", &[128], 64, 64),
        tile::<GemmParams>("rota_gemm_f16_32x64", &[64], 32, 64),
    ],
    [
        tile::<GemmParams>("rota_gemm_bf16_128x64", &[256], 128, 64),
        tile::<GemmParams>("rota_gemm_bf16_64x64", &[128], 64, 64),
        tile::<GemmParams>("rota_gemm_bf16_32x64", &[64], 32, 64),
    ],
];

/// For products of a few rows, by what is stored (f32, f16, bf16): b read along the depth, or across its columns.
pub(crate) static FEW_ROWS: [[Tile; 2]; 3] = [
    [
        tile::<GemmParams>("rota_gemv_f32_deep", &[128], FEW, 4),
        tile::<GemmParams>("rota_gemv_f32_wide", &[256], FEW, 32),
    ],
    [
        tile::<GemmParams>("rota_gemv_f16_deep", &[128], FEW, 4),
        tile::<GemmParams>("rota_gemv_f16_wide", &[256], FEW, 32),
    ],
    [
        tile::<GemmParams>("rota_gemv_bf16_deep", &[128], FEW, 4),
        tile::<GemmParams>("rota_gemv_bf16_wide", &[256], FEW, 32),
    ],
];

/// Rows that `gemv.cu` takes at most.
const FEW: u32 = 8;

/// What one block of a kernel computes.
pub(crate) struct Tile {
    pub kernel: Kernel,
    pub rows: u32,
    pub columns: u32,
}

impl Tile {
    /// Blocks for one product.
    pub(crate) fn count(&self, rows: u32, columns: u32) -> u64 {
        u64::from(rows.div_ceil(self.rows)) * u64::from(columns.div_ceil(self.columns))
    }
}

/// A grid with fewer blocks than this leaves much of a large GPU idle, so a smaller tile is taken (an H100 has 132
/// multiprocessors).
const BLOCKS_WANTED: u64 = 132;

/// The largest tile that still makes enough blocks and of which more than half is used; else the smallest that the rows need.
pub(crate) fn choose(tiles: &'static [Tile; 3], rows: u32, columns: u32, batches: u64) -> &'static Tile {
    let fits = |tile: &&Tile| {
        rows * 2 > tile.rows && columns * 2 > tile.columns && tile.count(rows, columns) * batches >= BLOCKS_WANTED
    };
    let [.., middle, smallest] = tiles;
    tiles.iter().find(fits).unwrap_or(if rows <= smallest.rows { smallest } else { middle })
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

    /// Whether fours along the stride of 1 are aligned and end with the matrix.
    fn vector(&self, rows: u32, columns: u32, element_bytes: u64) -> bool {
        let (along, across) = if self.column == 1 { (columns, self.row) } else { (rows, self.column) };
        (self.column == 1 || self.row == 1)
            && self.pointer.0.is_multiple_of(4 * element_bytes)
            && along.is_multiple_of(4)
            && across.is_multiple_of(4)
            && self.batch.iter().all(|stride| stride.is_multiple_of(4))
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
    /// The launch, with the tile that suits the shapes.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        if let Some(tile) = self.few_rows() {
            return self.launch_with(tile);
        }
        let batches = u64::from(self.batches[0]) * u64::from(self.batches[1]);
        self.launch_with(choose(&TILES[self.math as usize], self.rows, self.columns, batches))
    }

    /// The launch with each tile that there is, for tests that have to see them all.
    pub fn launches(&self) -> Result<Vec<Launch>, Unfit> {
        TILES[self.math as usize].iter().chain(self.few_rows()).map(|tile| self.launch_with(tile)).collect()
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

    fn launch_with(&self, tile: &'static Tile) -> Result<Launch, Unfit> {
        let batches = u64::from(self.batches[0]) * u64::from(self.batches[1]);
        fit("gemm", "batches", batches)?;
        let blocks = fit("gemm", "number of tiles", tile.count(self.rows, self.columns))?;
        if self.c.column != 1 {
            let what =
                format!("the output's columns are {} elements apart, they have to be side by side", self.c.column);
            return Err(Unfit::Unsupported { kernel: "gemm", what });
        }
        let (a_vector, b_vector) = self.vectors();
        let params = GemmParams {
            a: self.a.pointer,
            b: self.b.pointer,
            c: self.c.pointer,
            bias: self.epilogue.bias,
            residual: self.epilogue.residual,
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
            epilogue: self.epilogue.params(),
        };
        let grid = [blocks, batches.min(GRID_YZ_MAX) as u32, 1];
        Ok(Launch::new(&tile.kernel, grid, tile.kernel.blocks[0], params, self.cost()))
    }

    /// Whether fours of a and of b may be loaded at once, as the kernels want to be told.
    pub(crate) fn vectors(&self) -> (u32, u32) {
        let bytes = self.math.storage().bytes();
        let a = self.a.vector(self.rows, self.depth, bytes);
        let b = self.b.vector(self.depth, self.columns, bytes);
        (u32::from(a), u32::from(b))
    }

    /// What it costs, in however many launches.
    pub fn cost(&self) -> Cost {
        let [rows, columns, depth] = [self.rows, self.columns, self.depth].map(u64::from);
        let batches = u64::from(self.batches[0]) * u64::from(self.batches[1]);
        // A stride of 0 means that the operand is read once for all batches.
        let copies = |matrix: &Matrix| -> u64 {
            (0..2).map(|axis| if matrix.batch[axis] == 0 { 1 } else { u64::from(self.batches[axis]) }).product()
        };
        let (elements, operations) = self.epilogue.cost(batches, rows, columns);
        let bytes = self.math.storage().bytes();
        Cost {
            bytes_read: bytes * (copies(&self.a) * rows * depth + copies(&self.b) * depth * columns + elements),
            bytes_written: bytes * batches * rows * columns,
            flops: 2 * batches * rows * columns * depth + operations,
        }
    }
}
