//! Products with few tiles and much depth: how their depth is shared among blocks, and `split.cu`, which adds up what these leave.

use crate::dtype::Type;
use crate::epilogue::Epilogue;
use crate::launch::{Cost, Kernel, Launch, Unfit, fit, spread};
use crate::params::{Divider, Pointer, SplitParams};

const BLOCKS: &[u32] = &[256];
/// For f32, f16 and bf16.
pub(crate) static SPLIT: [Kernel; 3] = [
    Kernel::new::<SplitParams>("rota_split_f32", BLOCKS),
    Kernel::new::<SplitParams>("rota_split_f16", BLOCKS),
    Kernel::new::<SplitParams>("rota_split_bf16", BLOCKS),
];

/// Multiprocessors of the GPU that shapes are cut for when nobody says which: an H100 SXM's.
pub const MULTIPROCESSORS: u32 = 132;

/// Most parts of a depth.
const PARTS_MAX: u64 = 32;
/// More blocks than these fill nothing any more.
const BLOCKS_PER_MULTIPROCESSOR: u64 = 2;

/// What a second launch takes, in steps of a tile's depth: a step waits for memory once, and so does a launch, a few times.
const STEPS_PER_LAUNCH: u64 = 4;
/// What a block takes to write its sums and to read them again, in the same unit: a tile's sums are about as many bytes as its operands in
/// two steps.
const STEPS_PER_SUMS: u64 = 4;

/// How a product's depth is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Parts; 1: the depth is whole.
    pub parts: u32,
    /// Of each part but the last, which may have less.
    pub depth: u32,
}

impl Cut {
    /// Not at all.
    pub(crate) const fn whole(depth: u32) -> Cut {
        Cut { parts: 1, depth }
    }

    /// Into about that many parts, each of whole steps.
    pub(crate) fn into_parts(depth: u32, step: u32, parts: u32) -> Cut {
        let each = depth.div_ceil(parts.max(1)).next_multiple_of(step).max(step);
        match depth.div_ceil(each) {
            0 | 1 => Cut::whole(depth),
            parts => Cut { parts, depth: each },
        }
    }

    /// The cut that is done soonest on a GPU of `multiprocessors`, when a product has that many `tiles`, each of which walks the depth in
    /// steps of `step`.
    ///
    /// Blocks of all parts run side by side, so what counts is the steps of the busiest multiprocessor: as many rounds as it has blocks, each
    /// of a part's steps. More than one part costs the sums' way through memory and a second launch, and has to gain a quarter; a GPU that has
    /// work for all of its multiprocessors is left alone.
    pub(crate) fn best(tiles: u64, depth: u32, step: u32, multiprocessors: u32) -> Cut {
        let multiprocessors = u64::from(multiprocessors.max(1));
        let whole = u64::from(depth.div_ceil(step));
        let parts_max = (BLOCKS_PER_MULTIPROCESSOR * multiprocessors / tiles.max(1)).min(PARTS_MAX);
        if tiles >= multiprocessors {
            return Cut::whole(depth);
        }
        let steps = |cut: &Cut| {
            let rounds = (tiles * u64::from(cut.parts)).div_ceil(multiprocessors);
            rounds * (u64::from(cut.depth.div_ceil(step)) + STEPS_PER_SUMS) + STEPS_PER_LAUNCH
        };
        let cuts = (2..=parts_max as u32).map(|parts| Cut::into_parts(depth, step, parts)).filter(|cut| cut.parts > 1);
        let best = cuts.min_by_key(|cut| (steps(cut), cut.parts));
        best.filter(|cut| 4 * steps(cut) <= 3 * whole).unwrap_or(Cut::whole(depth))
    }
}

/// The second launch of a product whose depth was cut.
pub(crate) struct Split<'a> {
    /// Of y, its bias and residual.
    pub dtype: Type,
    pub parts: u32,
    /// f32 `[parts, dims]`.
    pub partial: Pointer,
    /// Of y, in the order of the partial sums.
    pub dims: [u32; 4],
    pub y: Pointer,
    pub y_strides: [u64; 4],
    pub bias_strides: [u32; 4],
    pub epilogue: &'a Epilogue,
}

impl Split<'_> {
    /// The launch. `outputs` is what the epilogue costs, and writing y.
    pub(crate) fn launch(&self, outputs: Cost) -> Result<Launch, Unfit> {
        let count = self.dims.iter().map(|&dim| u64::from(dim)).product();
        let kernel = match self.dtype {
            Type::F16 => &SPLIT[1],
            Type::Bf16 => &SPLIT[2],
            _ => &SPLIT[0],
        };
        let params = SplitParams {
            partial: self.partial,
            y: self.y,
            bias: self.epilogue.bias,
            residual: self.epilogue.residual,
            y_strides: self.y_strides,
            bias_strides: self.bias_strides,
            dims: self.dims.map(|dim| Divider::by(dim.max(1))),
            parts: self.parts,
            count: fit("split", "outputs", count)?,
            epilogue: self.epilogue.params(),
        };
        let adds = u64::from(self.parts) * count;
        let cost = outputs + Cost { bytes_read: 4 * adds, bytes_written: 0, flops: adds };
        Ok(Launch::new(kernel, spread(params.count, BLOCKS[0]), BLOCKS[0], params, cost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_has_whole_steps_and_covers_the_depth_once() {
        for depth in [1, 15, 16, 17, 100, 1152, 4608, 4609] {
            for step in [16, 32, 128] {
                for parts in 1..=PARTS_MAX as u32 {
                    let cut = Cut::into_parts(depth, step, parts);
                    assert!(cut.parts <= parts && cut.parts * cut.depth >= depth, "{depth}, {step}, {parts}: {cut:?}");
                    assert!((cut.parts - 1) * cut.depth < depth, "{depth}, {step}, {parts}: {cut:?}");
                    assert!(cut.parts == 1 || cut.depth.is_multiple_of(step), "{depth}, {step}, {parts}: {cut:?}");
                }
            }
        }
    }

    #[test]
    fn few_tiles_of_much_depth_are_cut_until_a_gpu_is_full_and_no_further() {
        let cases = [
            // 49 pixels, 512 filters, 4608 deep: 8 tiles; 128 blocks of 18 steps.
            ((8, 4608, 16), 132, 16),
            // On a GPU of 40 multiprocessors there is room for a quarter.
            ((8, 4608, 16), 40, 5),
            // As many tiles as multiprocessors, or more.
            ((132, 4608, 16), 132, 1),
            ((500, 4608, 16), 132, 1),
            // Half a round and a bit: thirds fill one and a half.
            ((70, 4608, 16), 132, 3),
            // Too little depth to be worth a second launch.
            ((8, 128, 16), 132, 1),
            ((1, 64, 32), 132, 1),
        ];
        for ((tiles, depth, step), multiprocessors, parts) in cases {
            let cut = Cut::best(tiles, depth, step, multiprocessors);
            assert_eq!(cut.parts, parts, "{tiles} tiles, {depth} deep, {multiprocessors} multiprocessors");
        }
    }
}
