//! Softmax and its logarithm: `softmax.cu`.

use crate::dtype::Float;
use crate::launch::{Cost, Kernel, Launch, Unfit, fit};
use crate::params::{Pointer, SoftmaxParams};

const BLOCKS: &[u32] = &[32, 64, 128, 256];
pub(crate) static F32: Kernel = Kernel::new::<SoftmaxParams>("rota_softmax_f32", BLOCKS);
pub(crate) static F16: Kernel = Kernel::new::<SoftmaxParams>("rota_softmax_f16", BLOCKS);

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
    /// The launch with four rows to a block.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.launch_with(128)
    }

    /// The launch with a block of `threads`, one of the kernel's.
    pub fn launch_with(&self, threads: u32) -> Result<Launch, Unfit> {
        let rows = fit("softmax", "number of rows", u64::from(self.outer) * u64::from(self.inner))?;
        let kernel = match self.dtype {
            Float::F32 => &F32,
            Float::F16 => &F16,
        };
        let params = SoftmaxParams {
            x: self.x,
            y: self.y,
            outer: self.outer,
            columns: self.columns,
            inner: self.inner,
            log: u32::from(self.log),
        };
        let elements = u64::from(rows) * u64::from(self.columns);
        let bytes = elements * self.dtype.bytes();
        let cost = Cost { bytes_read: bytes, bytes_written: bytes, flops: 5 * elements };
        Ok(Launch::new(kernel, [rows.div_ceil(threads / 32), 1, 1], threads, params, cost))
    }
}
