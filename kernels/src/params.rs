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

/// How a parameter struct lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its name in `params.h`.
    pub name: &'static str,
    /// Its size.
    pub bytes: usize,
    /// Each field's name and offset in bytes.
    pub fields: &'static [(&'static str, usize)],
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

        /// Every parameter struct.
        pub const LAYOUTS: &[Layout] = &[$(Layout {
            name: <$name as Params>::NAME,
            bytes: size_of::<$name>(),
            fields: <$name as Params>::FIELDS,
        },)*];
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
    GemmParams(6) {
        a: Pointer,
        b: Pointer,
        c: Pointer,
        bias: Pointer,
        residual: Pointer,
        partial: Pointer,
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
        split_depth: u32,
        reserved: u32,
        epilogue: Epilogue,
    }

    /// Of `split.cu`.
    SplitParams(4) {
        partial: Pointer,
        y: Pointer,
        bias: Pointer,
        residual: Pointer,
        y_strides: [u64; 4],
        bias_strides: [u32; 4],
        dims: [Divider; 4],
        parts: u32,
        count: u32,
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

    /// Division by a known number.
    Divider(0) {
        divisor: u32,
        multiplier: u32,
        shift: u32,
    }

    /// One step of a fused expression.
    Step(0) {
        op: u32,
        y: u32,
        z: u32,
        reserved: u32,
        y_constant: i64,
        z_constant: i64,
    }

    /// Of `elementwise.cu`.
    ElementwiseParams(9) {
        output: Pointer,
        inputs: [Pointer; INPUTS],
        count: u32,
        rank: u32,
        steps: u32,
        output_type: u32,
        quads: u32,
        input_types: [u32; INPUTS],
        modes: [u32; INPUTS],
        dims: [Divider; RANK],
        strides: [[u32; RANK]; INPUTS],
        output_vector: u32,
        program: [Step; STEPS],
    }

    /// Of `conv.cu`, `depthwise.cu` and `conv_transpose.cu`.
    ConvParams(6) {
        x: Pointer,
        w: Pointer,
        y: Pointer,
        bias: Pointer,
        residual: Pointer,
        partial: Pointer,
        images: u32,
        channels: u32,
        height: u32,
        width: u32,
        filters: u32,
        out_height: u32,
        out_width: u32,
        groups: u32,
        group_channels: u32,
        group_filters: u32,
        kernel_height: u32,
        kernel_width: u32,
        stride_y: u32,
        stride_x: u32,
        dilation_y: u32,
        dilation_x: u32,
        pad_top: i32,
        pad_left: i32,
        w_vector: u32,
        by_out_pixels: Divider,
        by_out_width: Divider,
        by_out_height: Divider,
        by_kernel_area: Divider,
        by_kernel_width: Divider,
        by_filters: Divider,
        by_across: Divider,
        split_depth: u32,
        reserved: u32,
        epilogue: Epilogue,
    }

    /// Of `pool.cu`.
    PoolParams(2) {
        x: Pointer,
        y: Pointer,
        count: u32,
        height: u32,
        width: u32,
        kernel_height: u32,
        kernel_width: u32,
        stride_y: u32,
        stride_x: u32,
        dilation_y: u32,
        dilation_x: u32,
        pad_top: i32,
        pad_left: i32,
        padded_height: u32,
        padded_width: u32,
        mode: u32,
        counts_padding: u32,
        by_out_width: Divider,
        by_out_height: Divider,
        reserved: u32,
    }

    /// Of `reduce.cu`.
    ReduceParams(2) {
        x: Pointer,
        y: Pointer,
        outer: u32,
        count: u32,
        inner: u32,
        reduction: u32,
        last: u32,
        reserved: u32,
        by_inner: Divider,
        reserved_too: u32,
    }

    /// Of `copy.cu`.
    CopyParams(2) {
        x: Pointer,
        y: Pointer,
        count: u32,
        rank: u32,
        dims: [Divider; RANK],
        x_strides: [i32; RANK],
        y_strides: [i32; RANK],
    }

    /// Of `transpose.cu`.
    TransposeParams(2) {
        x: Pointer,
        y: Pointer,
        rows: u32,
        columns: u32,
        x_row: u32,
        y_column: u32,
        outers: u32,
        rank: u32,
        dims: [Divider; OUTER],
        x_strides: [u32; OUTER],
        y_strides: [u32; OUTER],
    }

    /// Of `gather.cu`.
    GatherParams(4) {
        x: Pointer,
        indices: Pointer,
        y: Pointer,
        flags: Pointer,
        outer: u32,
        axis: u32,
        count: u32,
        inner: u32,
        wide: u32,
        per_element: u32,
        by_inner: Divider,
        by_count: Divider,
        by_item: Divider,
        reserved: u32,
    }

    /// Of `pad.cu`.
    PadParams(2) {
        x: Pointer,
        y: Pointer,
        value: u64,
        count: u32,
        rank: u32,
        mode: u32,
        reserved: u32,
        dims: [Divider; RANK],
        sizes: [i32; RANK],
        begins: [i32; RANK],
        strides: [u32; RANK],
    }

    /// Of `resize.cu`.
    ResizeParams(6) {
        x: Pointer,
        y: Pointer,
        rows: Pointer,
        row_weights: Pointer,
        columns: Pointer,
        column_weights: Pointer,
        count: u32,
        height: u32,
        width: u32,
        taps_y: u32,
        taps_x: u32,
        reserved: u32,
        by_out_width: Divider,
        by_out_height: Divider,
    }

    /// Of `normalize.cu`.
    NormalizeParams(5) {
        x: Pointer,
        y: Pointer,
        gamma: Pointer,
        beta: Pointer,
        residual: Pointer,
        rows: u32,
        columns: u32,
        row_period: u32,
        row_step: u32,
        epsilon: f32,
        root_mean_square: u32,
        by_column: Divider,
        reserved: u32,
    }

    /// Of `recurrent.cu`.
    RecurrentParams(10) {
        gates: Pointer,
        weights: Pointer,
        hidden_in: Pointer,
        cell_in: Pointer,
        hidden_out: Pointer,
        cell_out: Pointer,
        peepholes: Pointer,
        bias: Pointer,
        lengths: Pointer,
        output: Pointer,
        batch: u32,
        hidden: u32,
        step: u32,
        gates_row: u32,
    }

    /// Of `attention.cu`.
    AttentionParams(5) {
        q: Pointer,
        k: Pointer,
        v: Pointer,
        mask: Pointer,
        y: Pointer,
        q_strides: [u64; 3],
        k_strides: [u64; 3],
        v_strides: [u64; 3],
        y_strides: [u64; 3],
        mask_strides: [u64; 4],
        outers: u32,
        heads: u32,
        rows: u32,
        columns: u32,
        size: u32,
        v_size: u32,
        scale: f32,
        causal: u32,
    }

    /// An entry of the table that `grouped.cu` reads.
    GroupedProblem(5) {
        a: Pointer,
        b: Pointer,
        c: Pointer,
        bias: Pointer,
        residual: Pointer,
        rows: u32,
        columns: u32,
        depth: u32,
        a_row: u32,
        a_depth: u32,
        b_depth: u32,
        b_column: u32,
        c_row: u32,
        a_vector: u32,
        b_vector: u32,
        epilogue: Epilogue,
    }

    /// Of `grouped.cu`.
    GroupedParams(1) {
        problems: Pointer,
        count: u32,
        reserved: u32,
    }

    /// An entry of the table that `batch.cu` reads.
    MoveEntry(2) {
        source: Pointer,
        target: Pointer,
        bytes: u64,
    }

    /// Of `batch.cu`.
    MoveParams(2) {
        entries: Pointer,
        count: Pointer,
    }
}

/// Most dimensions of a tensor, after those that can be joined were.
pub const RANK: usize = 6;
/// Most outer dimensions of a transposition.
pub const OUTER: usize = 4;
/// Most inputs of a fused expression.
pub const INPUTS: usize = 8;
/// Most values that it can save.
pub const SLOTS: usize = 4;
/// Most steps that it can have.
pub const STEPS: usize = 24;

impl Divider {
    /// By `divisor`, which is not 0.
    pub(crate) fn by(divisor: u32) -> Divider {
        let shift = divisor.next_power_of_two().trailing_zeros();
        let multiplier = (1_u64 << (31 + shift)).div_ceil(u64::from(divisor));
        Divider { divisor, multiplier: multiplier as u32, shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divider_divides_like_the_machine() {
        let divide = |n: u32, d: Divider| ((u64::from(n) * u64::from(d.multiplier)) >> (31 + d.shift)) as u32;
        let edges = [0, 1, 2, 3, 5, 7, 31, 32, 33, 1023, 65_535, 65_536, 1 << 20, i32::MAX as u32 - 1, i32::MAX as u32];
        for &divisor in edges.iter().filter(|&&divisor| divisor > 0) {
            for &n in &edges {
                for n in [n, (n / divisor * divisor).min(i32::MAX as u32), (n / divisor * divisor).saturating_sub(1)] {
                    assert_eq!(divide(n, Divider::by(divisor)), n / divisor, "{n} / {divisor}");
                }
            }
        }
    }
}
