//! Fused element-wise expressions: `elementwise.cu`.

use crate::dtype::Type;
use crate::launch::{Cost, Kernel, Launch, Unfit, fit, spread};
use crate::layout::join;
use crate::params::{self, Divider, ElementwiseParams, INPUTS, Pointer, RANK, SLOTS, STEPS};

const BLOCKS: &[u32] = &[128];
pub(crate) static F32: Kernel = Kernel::new::<ElementwiseParams>("rota_elementwise_f32", BLOCKS);
pub(crate) static I64: Kernel = Kernel::new::<ElementwiseParams>("rota_elementwise_i64", BLOCKS);

/// What one step does with the accumulator x and its operands y and z; see `params.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Op {
    /// y.
    Load = 0,
    /// Puts x into the slot that y names.
    Save = 1,
    /// x + y.
    Add = 2,
    /// x - y.
    Sub = 3,
    /// y - x.
    SubFrom = 4,
    /// x * y.
    Mul = 5,
    /// x / y; integers towards zero.
    Div = 6,
    /// y / x.
    DivInto = 7,
    /// x to the y.
    Pow = 8,
    /// y to the x.
    PowOf = 9,
    /// The lesser, NaN when either is.
    Min = 10,
    /// The larger, NaN when either is.
    Max = 11,
    /// x mod y, sign of y.
    Mod = 12,
    /// y mod x, sign of x.
    ModOf = 13,
    /// Remainder of x / y, sign of x.
    Fmod = 14,
    /// Remainder of y / x, sign of y.
    FmodOf = 15,
    /// x * y + z.
    MulAdd = 16,
    /// min(max(x, y), z).
    Clip = 17,
    /// x != 0 ? y : z.
    Select = 18,
    /// x = y: 1 or 0, like all comparisons.
    Equal = 19,
    /// x < y.
    Less = 20,
    /// x <= y.
    LessEqual = 21,
    /// x > y.
    Greater = 22,
    /// x >= y.
    GreaterEqual = 23,
    /// Truth of x and y.
    And = 24,
    /// Truth of x or y.
    Or = 25,
    /// Truth of exactly one.
    Xor = 26,
    /// Truth of x being 0.
    Not = 27,
    /// -x.
    Neg = 28,
    /// |x|.
    Abs = 29,
    /// -1, 0 or 1.
    Sign = 30,
    /// Square root.
    Sqrt = 31,
    /// 1 / x.
    Reciprocal = 32,
    /// e to the x.
    Exp = 33,
    /// Natural logarithm.
    Log = 34,
    /// Largest integer that is not above x.
    Floor = 35,
    /// Smallest integer that is not below x.
    Ceil = 36,
    /// Nearest integer, ties to even.
    Round = 37,
    /// x without its fraction.
    Trunc = 38,
    /// Error function.
    Erf = 39,
    /// Hyperbolic tangent.
    Tanh = 40,
    /// 1 / (1 + exp(-x)).
    Sigmoid = 41,
    /// log(1 + exp(x)).
    Softplus = 42,
    /// x / (1 + |x|).
    Softsign = 43,
    /// clip(y * x + z, 0, 1).
    HardSigmoid = 44,
    /// x * clip(y * x + z, 0, 1).
    HardSwish = 45,
    /// x * sigmoid(x).
    Swish = 46,
    /// x * (1 + erf(x / sqrt 2)) / 2.
    Gelu = 47,
    /// x < 0 ? y * x : x.
    Prelu = 48,
    /// x < 0 ? y * (exp(x) - 1) : x.
    Elu = 49,
    /// Sine.
    Sin = 50,
    /// Cosine.
    Cos = 51,
    /// Tangent.
    Tan = 52,
    /// Inverse sine.
    Asin = 53,
    /// Inverse cosine.
    Acos = 54,
    /// Inverse tangent.
    Atan = 55,
    /// Hyperbolic sine.
    Sinh = 56,
    /// Hyperbolic cosine.
    Cosh = 57,
    /// Inverse hyperbolic sine.
    Asinh = 58,
    /// Inverse hyperbolic cosine.
    Acosh = 59,
    /// Inverse hyperbolic tangent.
    Atanh = 60,
    /// 1 where x is no number.
    IsNan = 61,
    /// x = +inf and y != 0, or x = -inf and z != 0.
    IsInf = 62,
    /// bits, of integers.
    BitAnd = 63,
    /// bits, of integers.
    BitOr = 64,
    /// bits, of integers.
    BitXor = 65,
    /// bits, of integers.
    BitNot = 66,
    /// bits, of integers.
    ShiftLeft = 67,
    /// bits, of integers, zeros come in.
    ShiftRight = 68,
}

/// Where an operand of a step comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Source {
    /// The step has no such operand.
    #[default]
    Nothing,
    /// An input, by its index.
    Input(u8),
    /// What [`Op::Save`] put there.
    Slot(u8),
    /// A number, for expressions in f32.
    F32(f32),
    /// A number, for expressions in integers.
    I64(i64),
}

impl Source {
    fn code(self) -> (u32, i64) {
        match self {
            Source::Nothing => (0, 0),
            Source::Input(index) => (256 + u32::from(index), 0),
            Source::Slot(index) => (512 + u32::from(index), 0),
            Source::F32(value) => (768, i64::from(value.to_bits())),
            Source::I64(value) => (768, value),
        }
    }
}

/// x = op(x, y, z).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// What is done.
    pub op: Op,
    /// First operand.
    pub y: Source,
    /// Second operand.
    pub z: Source,
}

impl Step {
    /// x = y: how an expression begins.
    pub fn load(y: Source) -> Step {
        Step::two(Op::Load, y)
    }

    /// A function of x alone.
    pub fn one(op: Op) -> Step {
        Step { op, y: Source::Nothing, z: Source::Nothing }
    }

    /// A function of x and y.
    pub fn two(op: Op, y: Source) -> Step {
        Step { op, y, z: Source::Nothing }
    }

    /// A function of x, y and z.
    pub fn three(op: Op, y: Source, z: Source) -> Step {
        Step { op, y, z }
    }
}

/// An input as the output's axes see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Its first element.
    pub pointer: Pointer,
    /// Its element type.
    pub dtype: Type,
    /// Elements per step of each axis of the output; 0 where it is broadcast.
    pub strides: Vec<u32>,
}

/// In what the expression is evaluated, whatever memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// binary32. Integers are converted, which is exact up to 2^24.
    F32,
    /// 64-bit integers; f32 inputs lose their fraction.
    I64,
}

/// `output[i]` = expression of inputs broadcast to the output's shape. The output may be one of the inputs that lies like it.
#[derive(Clone, Debug, PartialEq)]
pub struct Elementwise {
    /// In what it is evaluated.
    pub domain: Domain,
    /// The output's dimensions, outermost first; it is contiguous.
    pub dims: Vec<u32>,
    /// Its first element.
    pub output: Pointer,
    /// Its element type. What is stored as [`Type::Bool`] is whether x is not 0.
    pub output_type: Type,
    /// At most [`INPUTS`].
    pub inputs: Vec<Input>,
    /// At most [`STEPS`], the first one a [`Step::load`].
    pub steps: Vec<Step>,
}

impl Elementwise {
    /// The launch.
    pub fn launch(&self) -> Result<Launch, Unfit> {
        self.check()?;
        let count = fit("elementwise", "number of elements", self.dims.iter().map(|&dim| u64::from(dim)).product())?;
        let (dims, strides) = self.joined();
        if dims.len() > RANK {
            return Err(self.too_many("dimensions that can't be joined", dims.len(), RANK));
        }
        let mut params = ElementwiseParams {
            output: self.output,
            inputs: [Pointer::NONE; INPUTS],
            count,
            rank: dims.len() as u32,
            steps: self.steps.len() as u32,
            output_type: self.output_type as u32,
            quads: u32::from(dims.last().is_some_and(|dim| dim.is_multiple_of(4))),
            input_types: [0; INPUTS],
            modes: [0; INPUTS],
            dims: [Divider::by(1); RANK],
            strides: [[0; RANK]; INPUTS],
            output_vector: u32::from(self.output.0.is_multiple_of(4 * self.output_type.bytes())),
            program: [params::Step { op: 0, y: 0, z: 0, reserved: 0, y_constant: 0, z_constant: 0 }; STEPS],
        };
        for (place, &dim) in params.dims.iter_mut().zip(&dims) {
            *place = Divider::by(dim.max(1));
        }
        for (index, (input, strides)) in self.inputs.iter().zip(&strides).enumerate() {
            params.inputs[index] = input.pointer;
            params.input_types[index] = input.dtype as u32;
            params.modes[index] = mode(input, &dims, strides);
            params.strides[index][..strides.len()].copy_from_slice(strides);
        }
        for (place, step) in params.program.iter_mut().zip(&self.steps) {
            let ((y, y_constant), (z, z_constant)) = (step.y.code(), step.z.code());
            *place = params::Step { op: step.op as u32, y, z, reserved: 0, y_constant, z_constant };
        }
        let kernel = match self.domain {
            Domain::F32 => &F32,
            Domain::I64 => &I64,
        };
        let grid = spread(count.div_ceil(4), BLOCKS[0]);
        Ok(Launch::new(kernel, grid, BLOCKS[0], params, self.cost(u64::from(count))))
    }

    fn check(&self) -> Result<(), Unfit> {
        if self.inputs.len() > INPUTS {
            return Err(self.too_many("inputs", self.inputs.len(), INPUTS));
        }
        if self.steps.len() > STEPS {
            return Err(self.too_many("steps", self.steps.len(), STEPS));
        }
        for source in self.steps.iter().flat_map(|step| [step.y, step.z]) {
            match source {
                Source::Input(index) if usize::from(index) >= self.inputs.len() => {
                    return Err(self.too_many("index of an input", index.into(), self.inputs.len().saturating_sub(1)));
                }
                Source::Slot(index) if usize::from(index) >= SLOTS => {
                    return Err(self.too_many("index of a slot", index.into(), SLOTS - 1));
                }
                _ => {}
            }
        }
        let rank = self.dims.len();
        match self.inputs.iter().find(|input| input.strides.len() != rank) {
            Some(input) => Err(Unfit::Unsupported {
                kernel: "elementwise",
                what: format!("an input has {} strides where the output has {rank} dimensions", input.strides.len()),
            }),
            None => Ok(()),
        }
    }

    fn too_many(&self, what: &'static str, value: usize, max: usize) -> Unfit {
        Unfit::TooLarge { kernel: "elementwise", what, value: value as u64, max: max as u64 }
    }

    /// Dimensions, and each input's strides, with axes of 1 left out and neighbours joined that every input steps through as one.
    fn joined(&self) -> (Vec<u32>, Vec<Vec<u32>>) {
        let strides: Vec<Vec<i64>> =
            self.inputs.iter().map(|input| input.strides.iter().map(|&stride| i64::from(stride)).collect()).collect();
        let (dims, joined) = join(&self.dims, &strides.iter().map(|strides| &strides[..]).collect::<Vec<_>>());
        let narrow = |strides: Vec<i64>| strides.into_iter().map(|stride| stride as u32).collect();
        (dims, joined.into_iter().map(narrow).collect())
    }

    fn cost(&self, count: u64) -> Cost {
        let read = |input: &Input| -> u64 {
            let dims = self.dims.iter().zip(&input.strides).filter(|&(_, &stride)| stride > 0);
            input.dtype.bytes() * dims.map(|(&dim, _)| u64::from(dim)).product::<u64>()
        };
        let arithmetic = self.steps.iter().filter(|step| !matches!(step.op, Op::Load | Op::Save)).count() as u64;
        Cost {
            bytes_read: self.inputs.iter().map(read).sum(),
            bytes_written: count * self.output_type.bytes(),
            flops: arithmetic * count,
        }
    }
}

/// How the kernel reads an input: `RotaMode` of `params.h`.
fn mode(input: &Input, dims: &[u32], strides: &[u32]) -> u32 {
    let contiguous = dims.iter().zip(strides).rev().try_fold(1_u64, |expected, (&dim, &stride)| {
        (u64::from(stride) == expected || dim == 1).then_some(expected * u64::from(dim))
    });
    let aligned = input.pointer.0.is_multiple_of(4 * input.dtype.bytes());
    match () {
        () if contiguous.is_some() && aligned => 1,
        () if strides.iter().all(|&stride| stride == 0) => 2,
        () => 0,
    }
}
