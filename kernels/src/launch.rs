//! One launch of one kernel, and what it costs.

use std::time::Duration;

use crate::params::{Params, Pointer};

/// A kernel of the catalogue, as its source declares it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The entry's name in the image.
    pub name: &'static str,
    /// The parameter struct's name in `params.h`.
    pub params: &'static str,
    /// Its size.
    pub params_bytes: usize,
    /// How many device addresses it begins with.
    pub pointers: usize,
    /// The blocks that it may be launched with, in threads.
    pub blocks: &'static [u32],
}

impl Kernel {
    /// For the catalogue's constants.
    pub(crate) const fn new<P: Params>(name: &'static str, blocks: &'static [u32]) -> Kernel {
        Kernel { name, params: P::NAME, params_bytes: size_of::<P>(), pointers: P::POINTERS, blocks }
    }
}

/// What a launch moves and computes, whatever the hardware: each operand counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes that have to come from device memory at least once.
    pub bytes_read: u64,
    /// Bytes that have to go there.
    pub bytes_written: u64,
    /// Multiplications and additions, a fused one counting two; of transcendental functions one each.
    pub flops: u64,
}

impl Cost {
    /// The least time that hardware with these rates takes: bytes and flops overlap, so the longer of the two.
    pub fn roofline(&self, bytes_per_second: f64, flops_per_second: f64) -> Duration {
        let bytes = (self.bytes_read + self.bytes_written) as f64 / bytes_per_second;
        Duration::from_secs_f64(bytes.max(self.flops as f64 / flops_per_second))
    }
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            bytes_read: self.bytes_read + other.bytes_read,
            bytes_written: self.bytes_written + other.bytes_written,
            flops: self.flops + other.flops,
        }
    }
}

/// All that `cuLaunchKernel` is told, and the cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Which kernel.
    pub kernel: &'static Kernel,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory. Our kernels declare theirs statically, so this is 0 so far.
    pub shared_bytes: u32,
    /// The parameter struct's bytes.
    pub params: Vec<u8>,
    /// What it costs.
    pub cost: Cost,
}

impl Launch {
    pub(crate) fn new<P: Params>(
        kernel: &'static Kernel,
        grid: [u32; 3],
        threads: u32,
        params: P,
        cost: Cost,
    ) -> Launch {
        debug_assert_eq!(kernel.params, P::NAME);
        debug_assert!(kernel.blocks.contains(&threads), "{} is not launched with {threads} threads", kernel.name);
        Launch { kernel, grid, block: [threads, 1, 1], shared_bytes: 0, params: params.as_bytes().to_vec(), cost }
    }

    /// Blocks of the whole grid.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&count| u64::from(count)).product()
    }

    /// The device addresses among the parameters, in the struct's order.
    pub fn pointers(&self) -> impl Iterator<Item = Pointer> {
        self.params[..self.kernel.pointers * 8]
            .chunks_exact(8)
            .map(|word| Pointer(u64::from_ne_bytes(word.try_into().expect("chunks of 8 bytes"))))
    }

    /// Replaces every device address but absent ones by what `place` says: a memory plan's places become addresses.
    pub fn relocate(&mut self, mut place: impl FnMut(Pointer) -> Pointer) {
        for word in self.params[..self.kernel.pointers * 8].chunks_exact_mut(8) {
            let pointer = Pointer(u64::from_ne_bytes((&*word).try_into().expect("chunks of 8 bytes")));
            if pointer.is_some() {
                word.copy_from_slice(&place(pointer).0.to_ne_bytes());
            }
        }
    }
}

/// Shapes that no kernel of a family can take. The caller's fault: lowering has to split them or refuse the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A dimension or stride does not fit what the kernel counts with.
    #[error("{kernel}: {what} is {value}, at most {max} is possible")]
    TooLarge {
        /// Family.
        kernel: &'static str,
        /// The dimension, in words.
        what: &'static str,
        /// What was asked for.
        value: u64,
        /// What is possible.
        max: u64,
    },
    /// The element type, or a combination of settings, that the family has no kernel for.
    #[error("{kernel}: {what}")]
    Unsupported {
        /// Family.
        kernel: &'static str,
        /// What is not there.
        what: String,
    },
}

/// `value` as u32, or the refusal that names it.
pub(crate) fn fit(kernel: &'static str, what: &'static str, value: u64) -> Result<u32, Unfit> {
    let max = u64::from(u32::MAX >> 1);
    if value > max { Err(Unfit::TooLarge { kernel, what, value, max }) } else { Ok(value as u32) }
}

/// A kernel that strides over what a grid axis can't hold is launched with at most this many blocks on y and z.
pub(crate) const GRID_YZ_MAX: u64 = 65_535;

/// A grid for `work` independent items, of which each thread takes one and then strides on: enough to fill the largest GPU
/// several times over, and no more.
pub(crate) fn spread(work: u32, threads: u32) -> [u32; 3] {
    const THREADS_MAX: u32 = 132 * 2048 * 8;
    [work.div_ceil(threads).clamp(1, THREADS_MAX / threads), 1, 1]
}

/// Whether rows are so few that a warp for each leaves multiprocessors of a large GPU without a block, and so long that a block's threads have some
/// of each.
pub(crate) fn few_and_long(rows: u32, columns: u32) -> bool {
    rows < 4 * crate::MULTIPROCESSORS && columns >= 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conv, Epilogue, Math, Softmax};

    #[test]
    fn relocation_moves_every_address_but_absent_ones() {
        let conv = Conv {
            math: Math::F32,
            images: 2,
            channels: 3,
            input: [5, 5],
            filters: 4,
            output: [5, 5],
            groups: 1,
            kernel: [3, 3],
            strides: [1, 1],
            dilations: [1, 1],
            pads: [1, 1],
            x: Pointer(16),
            w: Pointer(32),
            y: Pointer(48),
            epilogue: Epilogue { residual: Pointer(64), ..Epilogue::default() },
        };
        let mut launch = conv.launch().unwrap();
        launch.relocate(|Pointer(place)| Pointer(place + 0x7000_0000_0000));
        let moved = [16, 32, 48, 0, 64, 0].map(|place| Pointer(if place == 0 { 0 } else { place + 0x7000_0000_0000 }));
        assert_eq!(launch.pointers().collect::<Vec<_>>(), moved);
        // 2 x 3 x 25 inputs, 4 x 27 weights and as many residuals as outputs; a product and a sum per tap, a sum per residual.
        let outputs = 2 * 4 * 25;
        let expected =
            Cost { bytes_read: 4 * (150 + 108 + outputs), bytes_written: 4 * outputs, flops: outputs * (2 * 27 + 1) };
        assert_eq!(launch.cost, expected);
    }

    #[test]
    fn the_roofline_is_the_longer_of_bytes_and_flops() {
        let cost = Cost { bytes_read: 3_000, bytes_written: 1_000, flops: 10_000 };
        assert_eq!(cost.roofline(1e9, 1e9), Duration::from_micros(10));
        assert_eq!(cost.roofline(1e8, 1e9), Duration::from_micros(40));
    }

    #[test]
    fn a_grid_has_a_thread_for_each_item_until_the_gpu_is_full() {
        assert_eq!(spread(0, 128), [1, 1, 1]);
        assert_eq!(spread(129, 128), [2, 1, 1]);
        assert!(spread(u32::MAX, 256)[0] < 100_000);
    }

    #[test]
    fn more_rows_than_a_kernel_counts_are_refused_with_the_figures() {
        let softmax = Softmax {
            dtype: crate::Float::F32,
            outer: 1 << 20,
            columns: 2,
            inner: 1 << 12,
            log: false,
            x: Pointer(16),
            y: Pointer(16),
        };
        let expected = "softmax: number of rows is 4294967296, at most 2147483647 is possible";
        assert_eq!(softmax.launch().unwrap_err().to_string(), expected);
    }
}
