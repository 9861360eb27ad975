//! Many products in one launch: `grouped.cu`.

use crate::dtype::Math;
use crate::epilogue::Epilogue;
use crate::gemm::{Gemm, Matrix, Tile, tile};
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

impl GroupedProblem {
    /// The addresses that it names, absent ones too.
    pub fn pointers(&self) -> [Pointer; 5] {
        [self.a, self.b, self.c, self.bias, self.residual]
    }

    /// Replaces every address but absent ones by what `place` says.
    pub fn relocate(&mut self, place: impl Fn(Pointer) -> Pointer) {
        for pointer in [&mut self.a, &mut self.b, &mut self.c, &mut self.bias, &mut self.residual] {
            if pointer.is_some() {
                *pointer = place(*pointer);
            }
        }
    }

    /// The same product of `count` of its rows, from row `first` on, of elements of `element_bytes`.
    pub fn of_rows(mut self, first: u32, count: u32, element_bytes: u64) -> GroupedProblem {
        let shift = |pointer: &mut Pointer, row: u32| {
            if pointer.is_some() {
                pointer.0 += u64::from(first) * u64::from(row) * element_bytes;
            }
        };
        shift(&mut self.a, self.a_row);
        shift(&mut self.c, self.c_row);
        shift(&mut self.residual, self.c_row);
        shift(&mut self.bias, self.epilogue.bias_row);
        // Fours along the rows would begin and end elsewhere.
        self.a_vector &= u32::from(self.a_row != 1);
        self.rows = count;
        self
    }
}

impl Gemm {
    /// The product taken apart into those of `members` that lie side by side in it: each has as many of its columns, or one of its
    /// batches. `None` where it is not so made.
    pub fn split(&self, members: u32) -> Option<Vec<Gemm>> {
        let bytes = self.math.storage().bytes();
        let shifted = |pointer: Pointer, elements: u64| match pointer.is_some() {
            true => Pointer(pointer.0 + elements * bytes),
            false => pointer,
        };
        let moved = |a: u64, b: u64, c: u64, bias: u64, columns: u32| Gemm {
            columns,
            batches: [1, 1],
            a: Matrix { pointer: shifted(self.a.pointer, a), batch: [0, 0], ..self.a },
            b: Matrix { pointer: shifted(self.b.pointer, b), batch: [0, 0], ..self.b },
            c: Matrix { pointer: shifted(self.c.pointer, c), batch: [0, 0], ..self.c },
            epilogue: Epilogue {
                bias: shifted(self.epilogue.bias, bias),
                residual: shifted(self.epilogue.residual, c),
                ..self.epilogue
            },
            ..*self
        };
        if self.batches == [1, 1] {
            let columns = self.columns.checked_div(members).filter(|_| self.columns.is_multiple_of(members))?;
            let member = |member: u32| {
                let first = u64::from(member * columns);
                let (b, bias) = (first * u64::from(self.b.column), first * u64::from(self.epilogue.bias_column));
                moved(0, b, first * u64::from(self.c.column), bias, columns)
            };
            return Some((0..members).map(member).collect());
        }
        if u64::from(self.batches[0]) * u64::from(self.batches[1]) != u64::from(members) {
            return None;
        }
        let member = |member: u32| {
            let [outer, inner] = [u64::from(member / self.batches[1]), u64::from(member % self.batches[1])];
            let at = |matrix: &Matrix| outer * matrix.batch[0] + inner * matrix.batch[1];
            moved(at(&self.a), at(&self.b), at(&self.c), 0, self.columns)
        };
        Some((0..members).map(member).collect())
    }

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
