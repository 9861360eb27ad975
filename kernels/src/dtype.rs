//! Element types.

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
