//! Attention without stored scores: `attention.cu`, and `attention_mma.cu` on tensor cores.

use crate::dtype::Float;
use crate::launch::{Cost, GRID_YZ_MAX, Kernel, Launch, Unfit};
use crate::params::{AttentionParams, Pointer};

const BLOCKS: &[u32] = &[128];
/// By element type.
pub(crate) static ATTENTION: [Kernel; 2] = [
    Kernel::new::<AttentionParams>("rota_attention_f32", BLOCKS),
    Kernel::new::<AttentionParams>("rota_attention_f16", BLOCKS),
];

/// f16 on tensor cores, by the largest head.
pub(crate) static TENSOR: [Kernel; 3] = [
    Kernel::new::<AttentionParams>("rota_attention_f16_mma_32", BLOCKS),
    Kernel::new::<AttentionParams>("rota_attention_f16_mma_64", BLOCKS),
    Kernel::new::<AttentionParams>("rota_attention_f16_mma_128", BLOCKS),
];
/// Rows of a block: on ordinary cores, on tensor cores.
const ROWS: [u32; 2] = [16, 64];
/// Elements that `attention_mma.cu` copies at once.
const COPIED: u64 = 8;

/// Columns of a head that fit the kernel's shared memory.
pub const HEAD_MAX: u32 = 128;

/// Elements between neighbours along the outer axis, the heads and the rows; columns lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// The first element.
    pub pointer: Pointer,
    /// Outer, head, row.
    pub strides: [u64; 3],
}

/// What is added to the scores before the softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Its first element, of the tensors' type; [`Pointer::NONE`] for no mask.
    pub pointer: Pointer,
    /// Outer, head, row, column; 0 where it is broadcast.
    pub strides: [u64; 4],
}

/// y = softmax(scale * q kᵀ + mask) v for each outer index and head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Element type of all tensors.
    pub dtype: Float,
    /// Items of the batch.
    pub outers: u32,
    /// Heads of each.
    pub heads: u32,
    /// Rows of q and y.
    pub rows: u32,
    /// Rows of k and v.
    pub columns: u32,
    /// Columns of q and k; at most [`HEAD_MAX`].
    pub size: u32,
    /// Columns of v and y; at most [`HEAD_MAX`].
    pub v_size: u32,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether row r sees columns up to r + columns - rows only.
    pub causal: bool,
    /// Queries.
    pub q: Heads,
    /// Keys.
    pub k: Heads,
    /// Values.
    pub v: Heads,
    /// Output.
    pub y: Heads,
    /// Added to the scores.
    pub mask: Mask,
}

impl Attention {
    /// The launch: on tensor cores, if they can take it.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        match self.tensor_kernel() {
            Some(kernel) => self.launch_with(kernel, ROWS[1]),
            None => self.launch_with(&ATTENTION[self.dtype as usize], ROWS[0]),
        }
    }

    /// The launch of each kernel that can do it, for tests that have to see them all.
    pub fn launches(&self) -> Result<Vec<Launch>, Unfit> {
        let plain = self.launch_with(&ATTENTION[self.dtype as usize], ROWS[0]);
        [plain].into_iter().chain(self.tensor_kernel().map(|kernel| self.launch_with(kernel, ROWS[1]))).collect()
    }

    fn tensor_kernel(&self) -> Option<&'static Kernel> {
        let whole = |value: u64| value.is_multiple_of(COPIED);
        let fits = |heads: &Heads| {
            heads.pointer.0.is_multiple_of(COPIED * self.dtype.bytes()) && heads.strides.iter().copied().all(whole)
        };
        let sizes = [self.size, self.v_size].into_iter().all(|size| whole(u64::from(size)));
        let fit = self.dtype == Float::F16 && sizes && [&self.q, &self.k, &self.v, &self.y].into_iter().all(fits);
        fit.then(|| match self.size.max(self.v_size) {
            0..=32 => &TENSOR[0],
            33..=64 => &TENSOR[1],
            _ => &TENSOR[2],
        })
    }

    fn launch_with(&self, kernel: &'static Kernel, rows_each: u32) -> Result<Launch, Unfit> {
        let widest = self.size.max(self.v_size);
        if widest > HEAD_MAX {
            let (what, value, max) = ("columns of a head", u64::from(widest), u64::from(HEAD_MAX));
            return Err(Unfit::TooLarge { kernel: "attention", what, value, max });
        }
        let pairs = u64::from(self.outers) * u64::from(self.heads);
        if pairs > GRID_YZ_MAX {
            return Err(Unfit::TooLarge {
                kernel: "attention",
                what: "items times heads",
                value: pairs,
                max: GRID_YZ_MAX,
            });
        }
        let params = AttentionParams {
            q: self.q.pointer,
            k: self.k.pointer,
            v: self.v.pointer,
            mask: self.mask.pointer,
            y: self.y.pointer,
            q_strides: self.q.strides,
            k_strides: self.k.strides,
            v_strides: self.v.strides,
            y_strides: self.y.strides,
            mask_strides: self.mask.strides,
            outers: self.outers,
            heads: self.heads,
            rows: self.rows,
            columns: self.columns,
            size: self.size,
            v_size: self.v_size,
            scale: self.scale,
            causal: u32::from(self.causal),
        };
        let [rows, columns, size, v_size] = [self.rows, self.columns, self.size, self.v_size].map(u64::from);
        let cost = Cost {
            bytes_read: self.dtype.bytes() * pairs * (rows * size + columns * (size + v_size)),
            bytes_written: self.dtype.bytes() * pairs * rows * v_size,
            flops: pairs * rows * columns * (2 * (size + v_size) + 5),
        };
        let grid = [self.rows.div_ceil(rows_each).max(1), (pairs as u32).max(1), 1];
        Ok(Launch::new(kernel, grid, BLOCKS[0], params, cost))
    }
}
