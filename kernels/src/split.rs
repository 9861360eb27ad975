//! Products with few tiles and much depth: how their depth is shared among blocks, and `split.cu`, which adds up what these leave.

use crate::dtype::Type;
use crate::epilogue::Epilogue;
use crate::gemm::Tile;
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

/// What a second launch takes, in waits for memory, of which a tile that loads one step ahead has one per step: a launch has a few. Assumed,
/// not measured, as is the next.
const WAITS_PER_LAUNCH: u64 = 4;
/// What a block takes to write its sums and to read them again, in the same unit: a tile's sums are about as many bytes as its operands in
/// two steps.
const WAITS_PER_SUMS: u64 = 4;

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

    /// The cut that is done soonest on a GPU of `multiprocessors`, when a product has that many tiles; of cuts that are about as soon, the
    /// one of the fewest parts.
    ///
    /// Blocks of all parts run side by side, so what counts is the steps of the busiest multiprocessor: as many rounds as it has blocks, each
    /// of a part's steps. More than one part costs the sums' way through memory and a second launch, and has to gain a quarter; a GPU that has
    /// work for all of its multiprocessors is left alone.
    pub(crate) fn best(tiles: u64, depth: u32, tile: &Tile, multiprocessors: u32) -> Cut {
        let (multiprocessors, step, ahead) = (u64::from(multiprocessors.max(1)), tile.depth, u64::from(tile.ahead));
        let whole = u64::from(depth.div_ceil(step));
        let parts_max = (BLOCKS_PER_MULTIPROCESSOR * multiprocessors / tiles.max(1)).min(PARTS_MAX);
        if tiles >= multiprocessors {
            return Cut::whole(depth);
        }
        let steps = |cut: &Cut| {
            let rounds = (tiles * u64::from(cut.parts)).div_ceil(multiprocessors);
            rounds * (u64::from(cut.depth.div_ceil(step)) + WAITS_PER_SUMS * ahead) + WAITS_PER_LAUNCH * ahead
        };
        let cuts = || (2..=parts_max as u32).map(|parts| Cut::into_parts(depth, step, parts));
        let Some(least) = cuts().map(|cut| steps(&cut)).min() else { return Cut::whole(depth) };
        let chosen = cuts().find(|cut| 8 * steps(cut) <= 9 * least && 4 * steps(cut) <= 3 * whole);
        chosen.unwrap_or(Cut::whole(depth))
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
    use crate::gemm::tile;
    use crate::params::GemmParams;

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
        let plain = tile::<GemmParams>("plain", &[128], [64, 64, 16]);
        let ahead = tile::<GemmParams>("ahead", &[128], [64, 64, 16]).ahead(3);
        let cases = [
            // 49 pixels, 512 filters, 4608 deep: 8 tiles; 14 parts are about as soon done as 16.
            (8, 4608, &plain, 132, 14),
            // On a GPU of 40 multiprocessors there is room for a third of that.
            (8, 4608, &plain, 40, 5),
            // As many tiles as multiprocessors, or more.
            (132, 4608, &plain, 132, 1),
            (500, 4608, &plain, 132, 1),
            // Half of them and a bit: thirds fill one and a half rounds.
            (70, 4608, &plain, 132, 3),
            // Too little depth to be worth a second launch, sooner where steps do not wait for each other.
            (8, 128, &plain, 132, 1),
            (8, 512, &plain, 132, 11),
            (8, 512, &ahead, 132, 1),
            (8, 4608, &ahead, 132, 13),
        ];
        for (tiles, depth, tile, multiprocessors, parts) in cases {
            let cut = Cut::best(tiles, depth, tile, multiprocessors);
            assert_eq!(cut.parts, parts, "{tiles} tiles of {}, {depth} deep, {multiprocessors}", tile.kernel.name);
        }
    }
}
