//! `params.h` in Rust: one struct per kernel family, the bytes that a launch passes by value.
//!
//! Field names, order and meaning are those of the header, which says what each is; `tests/params.rs` has the C++ compiler check
//! every offset and size. `IntoBytes` proves that there are no holes, so a struct can be hashed, compared and copied as bytes.

use zerocopy::{Immutable, IntoBytes};

/// A device address, or a place in a memory plan that becomes one by [`Launch::relocate`](crate::Launch::relocate). 0 is none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, IntoBytes, Immutable)]
pub struct Pointer(pub u64);

impl Pointer {
    /// What an absent operand has.
    pub const NONE: Pointer = Pointer(0);

    /// Whether there is an operand.
    pub fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// A parameter struct: what the catalogue and the layout test know of it.
pub trait Params: IntoBytes + Immutable + Copy {
    /// Its name in `params.h`.
    const NAME: &'static str;
    /// Each field's name and offset in bytes.
    const FIELDS: &'static [(&'static str, usize)];
    /// How many device addresses it begins with.
    const POINTERS: usize;
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident($pointers:literal) { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[allow(missing_docs, reason = "params.h says what each field is")]
            #[repr(C)]
            #[derive(Clone, Copy, Debug, PartialEq, IntoBytes, Immutable)]
            pub struct $name { $(pub $field: $type,)* }

            impl Params for $name {
                const NAME: &'static str = stringify!($name);
                const FIELDS: &'static [(&'static str, usize)] =
                    &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*];
                const POINTERS: usize = $pointers;
            }
        )*

        /// Every struct's name, size in bytes and fields.
        pub const LAYOUTS: &[(&str, usize, &[(&str, usize)])] =
            &[$((<$name as Params>::NAME, size_of::<$name>(), <$name as Params>::FIELDS),)*];
    };
}

params! {
    /// What a GEMM or a convolution does with each sum before it is stored.
    Epilogue(0) {
        scale: f32,
        bias_scale: f32,
        activation: u32,
        a: f32,
        b: f32,
        residual_last: u32,
        bias_row: u32,
        bias_column: u32,
    }

    /// Of `gemm.cu` and `gemm_mma.cu`.
    GemmParams(5) {
        a: Pointer,
        b: Pointer,
        c: Pointer,
        bias: Pointer,
        residual: Pointer,
        a_outer: u64,
        a_inner: u64,
        b_outer: u64,
        b_inner: u64,
        c_outer: u64,
        c_inner: u64,
        rows: u32,
        columns: u32,
        depth: u32,
        batch_outer: u32,
        batch_inner: u32,
        a_row: u32,
        a_depth: u32,
        b_depth: u32,
        b_column: u32,
        c_row: u32,
        a_vector: u32,
        b_vector: u32,
        epilogue: Epilogue,
    }

    /// Of `softmax.cu`.
    SoftmaxParams(2) {
        x: Pointer,
        y: Pointer,
        outer: u32,
        columns: u32,
        inner: u32,
        log: u32,
    }
}
