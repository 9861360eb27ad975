//! Element types, shapes, and what a network takes and gives.

use std::fmt;

/// Element types that cross a device's border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::Bool | DType::U8 | DType::I8 => 1,
            DType::U16 | DType::I16 | DType::F16 | DType::Bf16 => 2,
            DType::U32 | DType::I32 | DType::F32 => 4,
            DType::U64 | DType::I64 | DType::F64 => 8,
        }
    }

    /// As files and messages spell it: "f32".
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::U8 => "u8",
            DType::I8 => "i8",
            DType::U16 => "u16",
            DType::I16 => "i16",
            DType::U32 => "u32",
            DType::I32 => "i32",
            DType::U64 => "u64",
            DType::I64 => "i64",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }

    /// The type that `name` spells, if any.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    pub const ALL: [DType; 13] = [
        DType::Bool,
        DType::U8,
        DType::I8,
        DType::U16,
        DType::I16,
        DType::U32,
        DType::I32,
        DType::U64,
        DType::I64,
        DType::F16,
        DType::Bf16,
        DType::F32,
        DType::F64,
    ];

    pub const fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::Bf16 | DType::F32 | DType::F64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Dimensions of a tensor, outermost first, at most eight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Shape {
    rank: u8,
    dims: [u32; 8],
}

impl Shape {
    pub const RANK_MAX: usize = 8;

    /// `None` when there are more than eight dimensions.
    pub fn new(dims: &[u32]) -> Option<Shape> {
        let mut shape = Shape { rank: u8::try_from(dims.len()).ok()?, dims: [0; 8] };
        shape.dims.get_mut(..dims.len())?.copy_from_slice(dims);
        Some(shape)
    }

    pub fn dims(&self) -> &[u32] {
        &self.dims[..usize::from(self.rank)]
    }

    pub fn dims_mut(&mut self) -> &mut [u32] {
        &mut self.dims[..usize::from(self.rank)]
    }

    /// Number of elements; `None` when that overflows.
    pub fn elements(&self) -> Option<usize> {
        self.dims().iter().try_fold(1usize, |n, &d| n.checked_mul(d as usize))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

/// A dimension as the network declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    Fixed(u32),
    /// Chosen by each request; with the network's name for it, `""` when it gives none.
    Dynamic(String),
}

/// One input or output of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: DType,
    pub dims: Vec<Dim>,
    /// The axis that requests are batched along; `None`: the same for every item of a batch.
    pub batch_axis: Option<usize>,
}

impl TensorSpec {
    /// Whether a tensor may have this shape: the rank is right, and so is every fixed dimension.
    pub fn takes(&self, shape: &Shape) -> bool {
        let fits = |(dim, &size): (&Dim, &u32)| match dim {
            Dim::Fixed(fixed) => *fixed == size,
            Dim::Dynamic(_) => true,
        };
        shape.dims().len() == self.dims.len() && self.dims.iter().zip(shape.dims()).all(fits)
    }
}

/// What a network takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

impl Signature {
    /// Whether several items can share a batch at all.
    pub fn batches(&self) -> bool {
        self.inputs.iter().any(|i| i.batch_axis.is_some())
    }
}
