//! Windows and whole axes: `pool.cu` and `reduce.cu`.

use crate::dtype::{Float, Type};
use crate::launch::{Cost, Kernel, Launch, Unfit, few_and_long, fit, spread};
use crate::params::{Divider, Pointer, PoolParams, ReduceParams};

const BLOCKS: &[u32] = &[64, 128, 256];
/// By element type.
pub(crate) static POOL: [Kernel; 2] =
    [Kernel::new::<PoolParams>("rota_pool_f32", BLOCKS), Kernel::new::<PoolParams>("rota_pool_f16", BLOCKS)];

/// By element type; along rows, along columns, and along rows with a block for each.
pub(crate) static REDUCE: [[Kernel; 3]; 4] = [
    [
        Kernel::new::<ReduceParams>("rota_reduce_rows_f32", BLOCKS),
        Kernel::new::<ReduceParams>("rota_reduce_columns_f32", BLOCKS),
        Kernel::new::<ReduceParams>("rota_reduce_long_f32", &[256]),
    ],
    [
        Kernel::new::<ReduceParams>("rota_reduce_rows_f16", BLOCKS),
        Kernel::new::<ReduceParams>("rota_reduce_columns_f16", BLOCKS),
        Kernel::new::<ReduceParams>("rota_reduce_long_f16", &[256]),
    ],
    [
        Kernel::new::<ReduceParams>("rota_reduce_rows_i32", BLOCKS),
        Kernel::new::<ReduceParams>("rota_reduce_columns_i32", BLOCKS),
        Kernel::new::<ReduceParams>("rota_reduce_long_i32", &[256]),
    ],
    [
        Kernel::new::<ReduceParams>("rota_reduce_rows_i64", BLOCKS),
        Kernel::new::<ReduceParams>("rota_reduce_columns_i64", BLOCKS),
        Kernel::new::<ReduceParams>("rota_reduce_long_i64", &[256]),
    ],
];

/// What a window becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Its largest element.
    Max,
    /// Its mean over the elements inside of the picture.
    Average,
    /// Its mean where padding counts as zeros; these are the paddings below and to the right.
    AverageWithPadding([u32; 2]),
}

/// `y[plane, oy, ox]` from a window of x. Of one dimension: heights of 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pool {
    /// Element type of both tensors.
    pub dtype: Float,
    /// Pictures times channels.
    pub planes: u32,
    /// Height and width of the input.
    pub input: [u32; 2],
    /// Height and width of the output.
    pub output: [u32; 2],
    /// Height and width of the window.
    pub kernel: [u32; 2],
    /// Down and across.
    pub strides: [u32; 2],
    /// Down and across.
    pub dilations: [u32; 2],
    /// Above and to the left.
    pub pads: [i32; 2],
    /// What a window becomes.
    pub window: Window,
    /// Input.
    pub x: Pointer,
    /// Output.
    pub y: Pointer,
}

impl Pool {
    /// The launch.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.launch_with(256)
    }

    /// The launch with a block of `threads`.
    pub fn launch_with(&self, threads: u32) -> Result<Launch, Unfit> {
        let outputs = u64::from(self.planes) * u64::from(self.output[0]) * u64::from(self.output[1]);
        let inputs = u64::from(self.planes) * u64::from(self.input[0]) * u64::from(self.input[1]);
        let count = fit("pool", "number of outputs", outputs)?;
        let behind = if let Window::AverageWithPadding(pads) = self.window { pads } else { [0, 0] };
        let padded = |axis: usize| self.input[axis] + self.pads[axis].max(0) as u32 + behind[axis];
        let params = PoolParams {
            x: self.x,
            y: self.y,
            count,
            height: self.input[0],
            width: self.input[1],
            kernel_height: self.kernel[0],
            kernel_width: self.kernel[1],
            stride_y: self.strides[0],
            stride_x: self.strides[1],
            dilation_y: self.dilations[0],
            dilation_x: self.dilations[1],
            pad_top: self.pads[0],
            pad_left: self.pads[1],
            padded_height: padded(0),
            padded_width: padded(1),
            mode: u32::from(self.window != Window::Max),
            counts_padding: u32::from(matches!(self.window, Window::AverageWithPadding(_))),
            by_out_width: Divider::by(self.output[1].max(1)),
            by_out_height: Divider::by(self.output[0].max(1)),
            reserved: 0,
        };
        let cost = Cost {
            bytes_read: inputs * self.dtype.bytes(),
            bytes_written: outputs * self.dtype.bytes(),
            flops: outputs * u64::from(self.kernel[0]) * u64::from(self.kernel[1]),
        };
        Ok(Launch::new(&POOL[self.dtype as usize], spread(count, threads), threads, params, cost))
    }
}

/// What becomes of an axis; the codes are those of `params.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reduction {
    /// Sum.
    Sum = 0,
    /// Mean.
    Mean = 1,
    /// Largest element.
    Max = 2,
    /// Least element.
    Min = 3,
    /// Product.
    Product = 4,
    /// Sum of squares.
    SumSquare = 5,
    /// Sum of magnitudes.
    L1 = 6,
    /// Root of the sum of squares.
    L2 = 7,
    /// Logarithm of the sum.
    LogSum = 8,
    /// Logarithm of the sum of exponentials.
    LogSumExp = 9,
    /// Where the largest element is; the output is i64.
    ArgMax = 10,
    /// Where the least element is; the output is i64.
    ArgMin = 11,
}

/// `y[o, i]` = reduction of `x[o, :, i]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reduce {
    /// F32, F16, I32 or I64: of the input, and of the output unless that is a place.
    pub dtype: Type,
    /// What becomes of the axis.
    pub reduction: Reduction,
    /// Of equal extremes, whether the last one's place is wanted.
    pub last: bool,
    /// Product of the dimensions before the axis.
    pub outer: u32,
    /// The axis; not 0.
    pub count: u32,
    /// Product of the dimensions behind it.
    pub inner: u32,
    /// Input.
    pub x: Pointer,
    /// Output.
    pub y: Pointer,
}

impl Reduce {
    /// The launch; with a block per row where rows are few and long.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        match self.inner == 1 && few_and_long(self.outer, self.count) {
            true => self.launch_long(),
            false => self.launch_with(128),
        }
    }

    /// The launch with a block of `threads`, in which a warp has an output, or with an inner axis a thread.
    pub fn launch_with(&self, threads: u32) -> Result<Launch, Unfit> {
        match self.inner {
            1 => self.launch_of(0, threads, |outputs| u64::from(outputs) * 32),
            _ => self.launch_of(1, threads, u64::from),
        }
    }

    /// The launch with a block per row; there must be no inner axis.
    ///
    /// # Panics
    /// With one.
    pub fn launch_long(&self) -> Result<Launch, Unfit> {
        assert_eq!(self.inner, 1, "a row's elements lie side by side");
        self.launch_of(2, 256, |outputs| u64::from(outputs) * 256)
    }

    /// The launch of each kernel and block that can do it, for tests that have to see them all.
    pub fn launches(&self) -> Result<Vec<Launch>, Unfit> {
        let long = (self.inner == 1).then(|| self.launch_long());
        BLOCKS.iter().map(|&threads| self.launch_with(threads)).chain(long).collect()
    }

    /// `work` says how many threads so many outputs ask for.
    fn launch_of(&self, kernel: usize, threads: u32, work: impl Fn(u32) -> u64) -> Result<Launch, Unfit> {
        use Reduction::{L2, LogSum, LogSumExp};
        let unfit = |what: String| Err(Unfit::Unsupported { kernel: "reduce", what });
        let kernels = match self.dtype {
            Type::F32 => &REDUCE[0],
            Type::F16 => &REDUCE[1],
            Type::I32 => &REDUCE[2],
            Type::I64 => &REDUCE[3],
            other => return unfit(format!("{other:?} has to be converted first")),
        };
        if matches!(self.dtype, Type::I32 | Type::I64) && matches!(self.reduction, L2 | LogSum | LogSumExp) {
            return unfit(format!("{:?} is not taken of integers", self.reduction));
        }
        let outputs = fit("reduce", "number of outputs", u64::from(self.outer) * u64::from(self.inner))?;
        let params = ReduceParams {
            x: self.x,
            y: self.y,
            outer: self.outer,
            count: self.count,
            inner: self.inner,
            reduction: self.reduction as u32,
            last: u32::from(self.last),
            reserved: 0,
            by_inner: Divider::by(self.inner.max(1)),
            reserved_too: 0,
        };
        let elements = u64::from(outputs) * u64::from(self.count);
        let places = matches!(self.reduction, Reduction::ArgMax | Reduction::ArgMin);
        let cost = Cost {
            bytes_read: elements * self.dtype.bytes(),
            bytes_written: u64::from(outputs) * if places { 8 } else { self.dtype.bytes() },
            flops: elements * if matches!(self.reduction, Reduction::SumSquare | L2 | LogSumExp) { 2 } else { 1 },
        };
        let work = work(outputs).min(u64::from(u32::MAX)) as u32;
        Ok(Launch::new(&kernels[kernel], spread(work, threads), threads, params, cost))
    }
}
