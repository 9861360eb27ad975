//! Softmax and its logarithm: `softmax.cu`.

use crate::dtype::Float;
use crate::launch::{Cost, Kernel, Launch, Unfit, few_and_long, fit};
use crate::params::{Pointer, SoftmaxParams};

const BLOCKS: &[u32] = &[32, 64, 128, 256];
pub(crate) static F32: Kernel = Kernel::new::<SoftmaxParams>("rota_softmax_f32", BLOCKS);
pub(crate) static F16: Kernel = Kernel::new::<SoftmaxParams>("rota_softmax_f16", BLOCKS);

/// A block per row.
pub(crate) static LONG: [Kernel; 2] = [
    Kernel::new::<SoftmaxParams>("rota_softmax_long_f32", &[256]),
    Kernel::new::<SoftmaxParams>("rota_softmax_long_f16", &[256]),
];

/// `y[o, c, i]` = exp(`x[o, c, i]`) / its sum over c, or the logarithm of that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// Element type of both tensors.
    pub dtype: Float,
    /// Product of the dimensions before the axis.
    pub outer: u32,
    /// The axis.
    pub columns: u32,
    /// Product of the dimensions behind it.
    pub inner: u32,
    /// Whether the logarithm is wanted.
    pub log: bool,
    /// Input.
    pub x: Pointer,
    /// Output; may be the input.
    pub y: Pointer,
}

impl Softmax {
    /// The launch with four rows to a block, or with a row where they are few and long.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        if few_and_long(self.rows()?, self.columns) { self.launch_long() } else { self.launch_with(128) }
    }

    /// The launch with a warp per row and a block of `threads`, one of the kernel's.
    pub fn launch_with(&self, threads: u32) -> Result<Launch, Unfit> {
        let kernel = match self.dtype {
            Float::F32 => &F32,
            Float::F16 => &F16,
        };
        self.launch_of(kernel, threads, self.rows()?.div_ceil(threads / 32))
    }

    /// The launch with a block per row.
    pub fn launch_long(&self) -> Result<Launch, Unfit> {
        let kernel = &LONG[self.dtype as usize];
        self.launch_of(kernel, kernel.blocks[0], self.rows()?)
    }

    /// The launch of each kernel and block, for tests that have to see them all.
    pub fn launches(&self) -> Result<Vec<Launch>, Unfit> {
        BLOCKS.iter().map(|&threads| self.launch_with(threads)).chain([self.launch_long()]).collect()
    }

    fn rows(&self) -> Result<u32, Unfit> {
        fit("softmax", "number of rows", u64::from(self.outer) * u64::from(self.inner))
    }

    fn launch_of(&self, kernel: &'static Kernel, threads: u32, blocks: u32) -> Result<Launch, Unfit> {
        let params = SoftmaxParams {
            x: self.x,
            y: self.y,
            outer: self.outer,
            columns: self.columns,
            inner: self.inner,
            log: u32::from(self.log),
        };
        let elements = u64::from(self.rows()?) * u64::from(self.columns);
        let bytes = elements * self.dtype.bytes();
        let cost = Cost { bytes_read: bytes, bytes_written: bytes, flops: 5 * elements };
        Ok(Launch::new(kernel, [blocks, 1, 1], threads, params, cost))
    }
}
