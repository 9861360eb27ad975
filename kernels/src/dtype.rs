//! Element types, and how pictures lie.

/// How a picture's elements lie in memory; densely in either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[images, channels, height, width]`: neighbours are neighbours across the picture.
    #[default]
    Nchw,
    /// `[images, height, width, channels]`: neighbours are channels of one pixel.
    Nhwc,
}

/// What activations and weights are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE binary32.
    F32,
    /// IEEE binary16; arithmetic is in f32.
    F16,
}

impl Float {
    /// Size of an element.
    pub const fn bytes(self) -> u64 {
        match self {
            Float::F32 => 4,
            Float::F16 => 2,
        }
    }
}

/// What memory can hold; the codes are those of `params.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Type {
    /// IEEE binary32.
    F32 = 0,
    /// IEEE binary16.
    F16 = 1,
    /// The upper half of a binary32.
    Bf16 = 2,
    /// Signed, 8 bits.
    I8 = 3,
    /// Unsigned, 8 bits.
    U8 = 4,
    /// Signed, 16 bits.
    I16 = 5,
    /// Unsigned, 16 bits.
    U16 = 6,
    /// Signed, 32 bits.
    I32 = 7,
    /// Unsigned, 32 bits.
    U32 = 8,
    /// Signed, 64 bits.
    I64 = 9,
    /// A byte, 0 or 1.
    Bool = 10,
}

impl Type {
    /// Size of an element.
    pub const fn bytes(self) -> u64 {
        match self {
            Type::I8 | Type::U8 | Type::Bool => 1,
            Type::F16 | Type::Bf16 | Type::I16 | Type::U16 => 2,
            Type::F32 | Type::I32 | Type::U32 => 4,
            Type::I64 => 8,
        }
    }
}

impl From<Float> for Type {
    fn from(float: Float) -> Type {
        match float {
            Float::F32 => Type::F32,
            Float::F16 => Type::F16,
        }
    }
}

/// How a matrix product or convolution multiplies; sums are f32 in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Math {
    /// f32 tensors, f32 products: as exact as f32 is.
    F32,
    /// f32 tensors, products on tensor cores of operands that are rounded to 10 bits of fraction.
    Tf32,
    /// f16 tensors, on tensor cores.
    F16,
    /// bf16 tensors, on tensor cores.
    Bf16,
}

impl Math {
    /// What memory holds.
    pub const fn storage(self) -> Type {
        match self {
            Math::F32 | Math::Tf32 => Type::F32,
            Math::F16 => Type::F16,
            Math::Bf16 => Type::Bf16,
        }
    }

    /// The least compute capability, major and minor, of a GPU that has the instructions. On a lesser one the kernel must not be launched.
    pub const fn capability(self) -> (u32, u32) {
        match self {
            Math::F32 | Math::F16 => (7, 5),
            Math::Tf32 | Math::Bf16 => (8, 0),
        }
    }
}
