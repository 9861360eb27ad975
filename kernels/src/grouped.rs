//! Many products in one launch: `grouped.cu`.

use crate::dtype::Math;
use crate::gemm::{Gemm, Tile, tile};
use crate::launch::{Cost, GRID_YZ_MAX, Launch, Unfit, fit};
use crate::params::{GroupedParams, GroupedProblem, Pointer};

/// For f32, tf32 and f16, the larger first.
pub(crate) static TILES: [[Tile; 2]; 3] = [
    [
        tile::<GroupedParams>("rota_grouped_f32_64x64", &[256], [64, 64, 16]),
        tile::<GroupedParams>("rota_grouped_f32_16x64", &[128], [16, 64, 32]),
    ],
    [
        tile::<GroupedParams>("rota_grouped_tf32_64x64", &[128], [64, 64, 16]),
        tile::<GroupedParams>("rota_grouped_tf32_32x64", &[64], [32, 64, 16]),
    ],
    [
        tile::<GroupedParams>("rota_grouped_f16_64x64", &[128], [64, 64, 32]),
        tile::<GroupedParams>("rota_grouped_f16_32x64", &[64], [32, 64, 32]),
    ],
];

/// One launch for up to `count` products, whose table may change between launches. Row counts up to those given here are possible.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grouped {
    /// How all of them multiply; not bf16.
    pub math: Math,
    /// [`GroupedProblem`]s, in pinned or device memory; made by [`Gemm::problem`].
    pub problems: Pointer,
    /// How many.
    pub count: u32,
    /// Most rows that one of them can have.
    pub rows_max: u32,
    /// Most columns.
    pub columns_max: u32,
    /// What all of them together cost at most, from their own [`Launch::cost`]s.
    pub cost: Cost,
}

impl Grouped {
    /// The launch, with the tile that suits the most rows.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        let [larger, flat] = self.tiles()?;
        self.launch_with(if self.rows_max <= flat.rows { flat } else { larger })
    }

    /// The launch with each tile, for tests that have to see them all.
    pub fn launches(&self) -> Result<Vec<Launch>, Unfit> {
        self.tiles()?.iter().map(|tile| self.launch_with(tile)).collect()
    }

    fn tiles(&self) -> Result<&'static [Tile; 2], Unfit> {
        let what = "there are no grouped products of bf16".to_string();
        TILES.get(self.math as usize).ok_or(Unfit::Unsupported { kernel: "grouped", what })
    }

    fn launch_with(&self, tile: &'static Tile) -> Result<Launch, Unfit> {
        let tiles = fit("grouped", "number of tiles", tile.count(self.rows_max, self.columns_max))?;
        let params = GroupedParams { problems: self.problems, count: self.count, reserved: 0 };
        let grid = [tiles.max(1), u64::from(self.count).clamp(1, GRID_YZ_MAX) as u32, 1];
        Ok(Launch::new(&tile.kernel, grid, tile.kernel.blocks[0], params, self.cost))
    }
}

impl Gemm {
    /// This product as an entry of a grouped launch's table. Its addresses have to be real ones; its batches have to be `[1, 1]`.
    pub fn problem(&self) -> Result<GroupedProblem, Unfit> {
        if self.batches != [1, 1] || self.c.column != 1 {
            let what = format!("a product of {:?} batches, or one whose output has gaps between columns", self.batches);
            return Err(Unfit::Unsupported { kernel: "grouped", what });
        }
        let (a_vector, b_vector) = self.vectors();
        Ok(GroupedProblem {
            a: self.a.pointer,
            b: self.b.pointer,
            c: self.c.pointer,
            bias: self.epilogue.bias,
            residual: self.epilogue.residual,
            rows: self.rows,
            columns: self.columns,
            depth: self.depth,
            a_row: self.a.row,
            a_depth: self.a.column,
            b_depth: self.b.row,
            b_column: self.b.column,
            c_row: self.c.row,
            a_vector,
            b_vector,
            epilogue: self.epilogue.params(),
        })
    }
}
