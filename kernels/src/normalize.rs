//! Normalisations along rows: `normalize.cu`.

use crate::dtype::Float;
use crate::launch::{Cost, Kernel, Launch, Unfit, fit};
use crate::params::{Divider, NormalizeParams, Pointer};

const BLOCKS: &[u32] = &[32, 64, 128, 256];
/// By element type.
pub(crate) static NORMALIZE: [Kernel; 2] = [
    Kernel::new::<NormalizeParams>("rota_normalize_f32", BLOCKS),
    Kernel::new::<NormalizeParams>("rota_normalize_f16", BLOCKS),
];

/// Which gamma and beta an element has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affine {
    /// One per column: layer normalisation.
    PerColumn,
    /// One per channel, where a row is one channel of one picture: instance normalisation.
    PerChannel {
        /// Channels of a picture.
        channels: u32,
    },
    /// One per channel, where a row is a group of channels of one picture: group normalisation.
    PerGroup {
        /// Groups of a picture.
        groups: u32,
        /// Channels of a group.
        channels: u32,
    },
}

/// y = (x + residual - mean) / sqrt(variance + epsilon) * gamma + beta, each row of `columns` on its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalize {
    /// Element type of all tensors.
    pub dtype: Float,
    /// Rows.
    pub rows: u32,
    /// Elements of a row.
    pub columns: u32,
    /// Which gamma and beta an element has.
    pub affine: Affine,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether the mean is taken to be 0.
    pub root_mean_square: bool,
    /// Input.
    pub x: Pointer,
    /// Added to it first, or [`Pointer::NONE`].
    pub residual: Pointer,
    /// Factors, or [`Pointer::NONE`] for 1.
    pub gamma: Pointer,
    /// Offsets, or [`Pointer::NONE`] for 0.
    pub beta: Pointer,
    /// Output; may be the input.
    pub y: Pointer,
}

impl Normalize {
    /// The launch with a block that suits the row.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.launch_with(match self.columns {
            0..=128 => 32,
            129..=512 => 64,
            513..=1024 => 128,
            _ => 256,
        })
    }

    /// The launch with a block of `threads`.
    pub fn launch_with(&self, threads: u32) -> Result<Launch, Unfit> {
        let columns = fit("normalize", "columns", u64::from(self.columns))?;
        let (row_period, row_step, by) = match self.affine {
            Affine::PerColumn => (1, 0, 1),
            Affine::PerChannel { channels } => (channels, 1, columns),
            Affine::PerGroup { groups, channels } => (groups, channels, columns / channels.max(1)),
        };
        let params = NormalizeParams {
            x: self.x,
            y: self.y,
            gamma: self.gamma,
            beta: self.beta,
            residual: self.residual,
            rows: self.rows,
            columns,
            row_period: row_period.max(1),
            row_step,
            epsilon: self.epsilon,
            root_mean_square: u32::from(self.root_mean_square),
            by_column: Divider::by(by.max(1)),
            reserved: 0,
        };
        let elements = u64::from(self.rows) * u64::from(columns);
        let inputs = 1 + u64::from(self.residual.is_some());
        let cost = Cost {
            bytes_read: inputs * elements * self.dtype.bytes(),
            bytes_written: elements * self.dtype.bytes(),
            flops: 8 * elements,
        };
        let blocks = self.rows.clamp(1, i32::MAX as u32);
        Ok(Launch::new(&NORMALIZE[self.dtype as usize], [blocks, 1, 1], threads, params, cost))
    }
}
