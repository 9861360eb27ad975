//! Batches put together and taken apart: `batch.cu`.

use crate::launch::{Cost, GRID_YZ_MAX, Kernel, Launch};
use crate::params::{MoveParams, Pointer};

const BLOCKS: &[u32] = &[64, 128, 256];
pub(crate) static MOVE: Kernel = Kernel::new::<MoveParams>("rota_move", BLOCKS);

/// Moves the pieces that a table names when the launch runs. Its entries are [`MoveEntry`](crate::params::MoveEntry)s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// The table, in pinned or device memory.
    pub entries: Pointer,
    /// A u32 there: how many entries count this time.
    pub count: Pointer,
    /// Most entries that there can be.
    pub entries_max: u32,
    /// Bytes of the longest piece, which decide how many blocks share one.
    pub bytes_max: u64,
}

impl Move {
    /// The launch.
    pub fn launch(&self) -> Launch {
        self.launch_with(256)
    }

    /// The launch with a block of `threads`.
    pub fn launch_with(&self, threads: u32) -> Launch {
        /// Enough for one piece to fill a bus or a memory on its own.
        const BLOCKS_PER_PIECE_MAX: u64 = 64;
        let blocks = self.bytes_max.div_ceil(16 * u64::from(threads)).clamp(1, BLOCKS_PER_PIECE_MAX) as u32;
        let bytes = u64::from(self.entries_max) * self.bytes_max;
        let grid = [blocks, u64::from(self.entries_max).clamp(1, GRID_YZ_MAX) as u32, 1];
        let cost = Cost { bytes_read: bytes, bytes_written: bytes, flops: 0 };
        Launch::new(&MOVE, grid, threads, MoveParams { entries: self.entries, count: self.count }, cost)
    }
}
