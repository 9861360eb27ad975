//! Moving elements about: `copy.cu`, `transpose.cu`, `gather.cu`, `pad.cu`.

use crate::dtype::Type;
use crate::launch::{Cost, GRID_YZ_MAX, Kernel, Launch, Unfit, fit, spread};
use crate::params::{CopyParams, Divider, GatherParams, OUTER, PadParams, Params, Pointer, RANK, TransposeParams};

const BLOCKS: &[u32] = &[64, 128, 256];
const BLOCKS_256: &[u32] = &[256];

const fn kernels<const N: usize, P: Params>(names: [&'static str; N], blocks: &'static [u32]) -> [Kernel; N] {
    let mut kernels = [const { Kernel::new::<P>("", &[]) }; N];
    let mut index = 0;
    while index < N {
        kernels[index] = Kernel::new::<P>(names[index], blocks);
        index += 1;
    }
    kernels
}

/// By the logarithm of the unit's bytes, like all below.
pub(crate) static COPY: [Kernel; 5] =
    kernels::<5, CopyParams>(["rota_copy_1", "rota_copy_2", "rota_copy_4", "rota_copy_8", "rota_copy_16"], BLOCKS);
pub(crate) static TRANSPOSE: [Kernel; 4] = kernels::<4, TransposeParams>(
    ["rota_transpose_1", "rota_transpose_2", "rota_transpose_4", "rota_transpose_8"],
    BLOCKS_256,
);
pub(crate) static GATHER: [Kernel; 5] = kernels::<5, GatherParams>(
    ["rota_gather_1", "rota_gather_2", "rota_gather_4", "rota_gather_8", "rota_gather_16"],
    BLOCKS,
);
pub(crate) static PAD: [Kernel; 4] =
    kernels::<4, PadParams>(["rota_pad_1", "rota_pad_2", "rota_pad_4", "rota_pad_8"], BLOCKS);

/// Bytes that one thread moves at most.
const UNIT_MAX: u64 = 16;

/// `y[Σ index · y_stride]` = `x[Σ index · x_stride]` for all indices below `dims`.
///
/// Slices, expansions, permutations, and each input of a concatenation. Strides are in elements and may be negative; `x` and `y` are where
/// index 0 is.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    /// Size of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// What is copied; outermost first.
    pub dims: Vec<u32>,
    /// Source.
    pub x: Pointer,
    /// One per dimension.
    pub x_strides: Vec<i64>,
    /// Target.
    pub y: Pointer,
    /// One per dimension.
    pub y_strides: Vec<i64>,
}

impl Copy {
    /// The launch: with the widest units that fit, or through tiles where the last axis moves.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.launch_with(256)
    }

    /// The launch with a block of `threads`; one that goes through tiles has 256 in any case.
    pub fn launch_with(&self, threads: u32) -> Result<Launch, Unfit> {
        let rank = self.dims.len();
        if self.x_strides.len() != rank || self.y_strides.len() != rank || !matches!(self.element_bytes, 1 | 2 | 4 | 8)
        {
            let what = format!(
                "{rank} dimensions, {} and {} strides, elements of {} bytes",
                self.x_strides.len(),
                self.y_strides.len(),
                self.element_bytes
            );
            return Err(Unfit::Unsupported { kernel: "copy", what });
        }
        fit("copy", "number of elements", self.dims.iter().map(|&dim| u64::from(dim)).product())?;
        let (dims, strides) = join(&self.dims, &[&self.x_strides, &self.y_strides]);
        match self.transposed(&dims, &strides[0], &strides[1])? {
            Some(launch) => Ok(launch),
            None => self.plain(dims, strides, threads),
        }
    }

    fn cost(&self) -> Cost {
        let bytes = self.dims.iter().map(|&dim| u64::from(dim)).product::<u64>() * u64::from(self.element_bytes);
        let distinct: u64 =
            self.dims.iter().zip(&self.x_strides).filter(|&(_, &s)| s != 0).map(|(&dim, _)| u64::from(dim)).product();
        Cost { bytes_read: bytes.min(distinct * u64::from(self.element_bytes)), bytes_written: bytes, flops: 0 }
    }

    fn plain(&self, mut dims: Vec<u32>, mut strides: Vec<Vec<i64>>, threads: u32) -> Result<Launch, Unfit> {
        if dims.len() > RANK {
            let (value, max) = (dims.len() as u64, RANK as u64);
            return Err(Unfit::TooLarge { kernel: "copy", what: "dimensions that can't be joined", value, max });
        }
        let element = u64::from(self.element_bytes);
        let unit = widest(element, &dims, &strides, [self.x, self.y]);
        let per_unit = unit / element;
        let last = dims.len() - 1;
        dims[last] /= per_unit as u32;
        for strides in &mut strides {
            for stride in &mut strides[..last] {
                *stride /= per_unit as i64;
            }
        }
        let count = dims.iter().product();
        let mut params = CopyParams {
            x: self.x,
            y: self.y,
            count,
            rank: dims.len() as u32,
            dims: [Divider::by(1); RANK],
            x_strides: [0; RANK],
            y_strides: [0; RANK],
        };
        for (axis, &dim) in dims.iter().enumerate() {
            params.dims[axis] = Divider::by(dim.max(1));
            params.x_strides[axis] = stride_i32(strides[0][axis])?;
            params.y_strides[axis] = stride_i32(strides[1][axis])?;
        }
        Ok(Launch::new(&COPY[unit.ilog2() as usize], spread(count, threads), threads, params, self.cost()))
    }

    /// The launch through tiles, when one axis is contiguous in x and another in y.
    fn transposed(&self, dims: &[u32], x: &[i64], y: &[i64]) -> Result<Option<Launch>, Unfit> {
        /// Below this, most of a tile would be idle.
        const SIDE_MIN: u32 = 8;
        let along = |strides: &[i64]| (0..dims.len()).find(|&axis| strides[axis] == 1 && dims[axis] >= SIDE_MIN);
        let (Some(column), Some(row)) = (along(x), along(y)) else { return Ok(None) };
        let outer: Vec<usize> = (0..dims.len()).filter(|&axis| axis != row && axis != column).collect();
        if row == column || outer.len() > OUTER || x.iter().chain(y).any(|&stride| stride < 0) {
            return Ok(None);
        }
        let stride = |value: i64| fit("copy", "stride", value as u64);
        let outers = outer.iter().map(|&axis| dims[axis]).product::<u32>();
        let mut params = TransposeParams {
            x: self.x,
            y: self.y,
            rows: dims[row],
            columns: dims[column],
            x_row: stride(x[row])?,
            y_column: stride(y[column])?,
            outers,
            rank: outer.len() as u32,
            dims: [Divider::by(1); OUTER],
            x_strides: [0; OUTER],
            y_strides: [0; OUTER],
        };
        for (place, &axis) in outer.iter().enumerate() {
            params.dims[place] = Divider::by(dims[axis].max(1));
            params.x_strides[place] = stride(x[axis])?;
            params.y_strides[place] = stride(y[axis])?;
        }
        let tiles = dims[row].div_ceil(32) * dims[column].div_ceil(32);
        let grid = [tiles.max(1), outers.clamp(1, GRID_YZ_MAX as u32), 1];
        let kernel = &TRANSPOSE[self.element_bytes.ilog2() as usize];
        Ok(Some(Launch::new(kernel, grid, BLOCKS_256[0], params, self.cost())))
    }
}

fn stride_i32(value: i64) -> Result<i32, Unfit> {
    let (what, max) = ("stride", i32::MAX as u64);
    i32::try_from(value).map_err(|_| Unfit::TooLarge { kernel: "copy", what, value: value.unsigned_abs(), max })
}

/// The largest unit of bytes in which the innermost axis can be moved on both sides.
fn widest(element: u64, dims: &[u32], strides: &[Vec<i64>], pointers: [Pointer; 2]) -> u64 {
    let last = dims.len() - 1;
    if strides.iter().any(|strides| strides[last] != 1) {
        return element;
    }
    let mut unit = UNIT_MAX;
    let whole = |unit: u64| {
        let divides = |stride: &i64| (stride.unsigned_abs() * element).is_multiple_of(unit);
        (u64::from(dims[last]) * element).is_multiple_of(unit)
            && strides.iter().all(|strides| strides[..last].iter().all(divides))
            && pointers.iter().all(|pointer| pointer.0.is_multiple_of(unit))
    };
    while unit > element && !whole(unit) {
        unit /= 2;
    }
    unit
}

/// `dims` without axes of 1, and with neighbours joined where each of `strides` goes through both as through one.
pub(crate) fn join(dims: &[u32], strides: &[&[i64]]) -> (Vec<u32>, Vec<Vec<i64>>) {
    let mut joined: Vec<u32> = Vec::new();
    let mut out: Vec<Vec<i64>> = vec![Vec::new(); strides.len()];
    for axis in (0..dims.len()).filter(|&axis| dims[axis] != 1) {
        let joins = !joined.is_empty()
            && out
                .iter()
                .zip(strides)
                .all(|(out, strides)| out.last() == Some(&(strides[axis] * i64::from(dims[axis]))));
        if joins {
            *joined.last_mut().expect("not empty") *= dims[axis];
            out.iter_mut().zip(strides).for_each(|(out, strides)| *out.last_mut().expect("not empty") = strides[axis]);
        } else {
            joined.push(dims[axis]);
            out.iter_mut().zip(strides).for_each(|(out, strides)| out.push(strides[axis]));
        }
    }
    if joined.is_empty() {
        joined.push(1);
        out.iter_mut().for_each(|out| out.push(1));
    }
    (joined, out)
}

/// Which index an element of a gather takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picks {
    /// `indices[j]` for all o and i: whole rows.
    Rows,
    /// `indices[o, j, i]`: an index of its own for each element.
    Elements,
}

/// `y[o, j, i] = x[o, index, i]`. An index out of range is clamped, and the word of its item among `flags` set to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gather {
    /// Size of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// Product of the dimensions before the gathered one.
    pub outer: u32,
    /// The gathered dimension of x.
    pub axis: u32,
    /// Indices per outer step.
    pub count: u32,
    /// Product of the dimensions behind it.
    pub inner: u32,
    /// Which index an element takes.
    pub picks: Picks,
    /// [`Type::I32`] or [`Type::I64`]. Negative ones count from the end.
    pub index_type: Type,
    /// x `[outer, axis, inner]`.
    pub x: Pointer,
    /// `[count]`, or `[outer, count, inner]`.
    pub indices: Pointer,
    /// y `[outer, count, inner]`.
    pub y: Pointer,
    /// A u32 per item, or [`Pointer::NONE`]: for indices that are the model's own.
    pub flags: Pointer,
    /// How many indices, in the order in which they lie, belong to one item.
    pub indices_per_item: u32,
}

impl Gather {
    /// The launch.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.launch_with(256)
    }

    /// The launch with a block of `threads`.
    pub fn launch_with(&self, threads: u32) -> Result<Launch, Unfit> {
        let index_bytes = self.index_type.bytes();
        if !matches!(self.index_type, Type::I32 | Type::I64) || self.axis == 0 {
            let what = format!("indices are {:?} into an axis of {}", self.index_type, self.axis);
            return Err(Unfit::Unsupported { kernel: "gather", what });
        }
        let total = [self.outer, self.count, self.inner].map(u64::from).into_iter().product();
        fit("gather", "number of elements", total)?;
        let element = u64::from(self.element_bytes);
        let unit = match self.picks {
            Picks::Elements => element,
            Picks::Rows => widest(element, &[self.inner], &[vec![1]], [self.x, self.y]),
        };
        let inner = (u64::from(self.inner) * element / unit) as u32;
        let params = GatherParams {
            x: self.x,
            indices: self.indices,
            y: self.y,
            flags: self.flags,
            outer: self.outer,
            axis: self.axis,
            count: self.count,
            inner,
            wide: u32::from(self.index_type == Type::I64),
            per_element: u32::from(self.picks == Picks::Elements),
            by_inner: Divider::by(inner.max(1)),
            by_count: Divider::by(self.count.max(1)),
            by_item: Divider::by(self.indices_per_item.max(1)),
            reserved: 0,
        };
        let indices = if self.picks == Picks::Elements { total } else { u64::from(self.count) };
        let bytes = total * element;
        let cost = Cost { bytes_read: bytes + indices * index_bytes, bytes_written: bytes, flops: 0 };
        let work = self.outer * self.count * inner;
        Ok(Launch::new(&GATHER[unit.ilog2() as usize], spread(work, threads), threads, params, cost))
    }
}

/// What stands outside of x; the codes are those of `params.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PadMode {
    /// A constant.
    Constant = 0,
    /// x mirrored at its first and last element.
    Reflect = 1,
    /// Its first or last element.
    Edge = 2,
    /// x again from its other end.
    Wrap = 3,
}

/// y is x with elements in front of and behind each axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    /// Size of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// What stands outside.
    pub mode: PadMode,
    /// The constant's bits.
    pub value: u64,
    /// Dimensions of x, which is contiguous.
    pub input: Vec<u32>,
    /// Elements in front of each axis; negative ones are cut off.
    pub begins: Vec<i32>,
    /// Dimensions of y.
    pub output: Vec<u32>,
    /// Source.
    pub x: Pointer,
    /// Target.
    pub y: Pointer,
}

impl Pad {
    /// The launch.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.launch_with(256)
    }

    /// The launch with a block of `threads`.
    pub fn launch_with(&self, threads: u32) -> Result<Launch, Unfit> {
        let rank = self.input.len();
        if rank > RANK || self.begins.len() != rank || self.output.len() != rank {
            let what =
                format!("{rank} dimensions, {} paddings, {} output dimensions", self.begins.len(), self.output.len());
            return Err(Unfit::Unsupported { kernel: "pad", what });
        }
        let elements = |dims: &[u32]| dims.iter().map(|&dim| u64::from(dim)).product::<u64>();
        let count = fit("pad", "number of elements", elements(&self.output))?;
        fit("pad", "number of elements of the input", elements(&self.input))?;
        let mut params = PadParams {
            x: self.x,
            y: self.y,
            value: self.value,
            count,
            rank: rank as u32,
            mode: self.mode as u32,
            reserved: 0,
            dims: [Divider::by(1); RANK],
            sizes: [1; RANK],
            begins: [0; RANK],
            strides: [0; RANK],
        };
        let mut stride = 1;
        for axis in (0..rank).rev() {
            params.dims[axis] = Divider::by(self.output[axis].max(1));
            params.sizes[axis] = self.input[axis] as i32;
            params.begins[axis] = self.begins[axis];
            params.strides[axis] = stride;
            stride *= self.input[axis];
        }
        let element = u64::from(self.element_bytes);
        let cost =
            Cost { bytes_read: elements(&self.input) * element, bytes_written: u64::from(count) * element, flops: 0 };
        Ok(Launch::new(&PAD[self.element_bytes.ilog2() as usize], spread(count, threads), threads, params, cost))
    }
}
