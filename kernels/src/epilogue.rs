//! What GEMMs and convolutions do with each sum before it is stored.

use crate::params::{self, Pointer};

/// The last function; its formula with its parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// x
    #[default]
    Identity,
    /// max(x, 0)
    Relu,
    /// min(max(x, low), high)
    Clip {
        /// Least.
        low: f32,
        /// Largest.
        high: f32,
    },
    /// 1 / (1 + exp(-x))
    Sigmoid,
    /// tanh(x)
    Tanh,
    /// clip(a x + b, 0, 1)
    HardSigmoid {
        /// Slope.
        a: f32,
        /// Offset.
        b: f32,
    },
    /// x clip(a x + b, 0, 1)
    HardSwish {
        /// Slope.
        a: f32,
        /// Offset.
        b: f32,
    },
    /// x sigmoid(x)
    Swish,
    /// x (1 + erf(x / sqrt 2)) / 2
    Gelu,
    /// x, or a x where x is negative
    LeakyRelu {
        /// Slope below 0.
        a: f32,
    },
    /// x, or a (exp(x) - 1) where x is negative
    Elu {
        /// Factor below 0.
        a: f32,
    },
}

impl Activation {
    /// Code and the two parameters, as `params.h` has them.
    pub(crate) fn code(self) -> (u32, f32, f32) {
        match self {
            Activation::Identity => (0, 0.0, 0.0),
            Activation::Relu => (1, 0.0, 0.0),
            Activation::Clip { low, high } => (2, low, high),
            Activation::Sigmoid => (3, 0.0, 0.0),
            Activation::Tanh => (4, 0.0, 0.0),
            Activation::HardSigmoid { a, b } => (5, a, b),
            Activation::HardSwish { a, b } => (6, a, b),
            Activation::Swish => (7, 0.0, 0.0),
            Activation::Gelu => (8, 0.0, 0.0),
            Activation::LeakyRelu { a } => (9, a, 0.0),
            Activation::Elu { a } => (10, a, 0.0),
        }
    }
}

/// y = activation(scale * sum + bias_scale * bias + residual), the residual after the activation if `residual_last`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epilogue {
    /// Factor of the sum.
    pub scale: f32,
    /// The bias, f32 whatever the elements are; [`Pointer::NONE`] for none.
    pub bias: Pointer,
    /// Its factor.
    pub bias_scale: f32,
    /// How far the bias moves per row of the output, in elements; 0 broadcasts it. A convolution's row is its output channel.
    pub bias_row: u32,
    /// The same per column.
    pub bias_column: u32,
    /// Laid out and typed like the output; [`Pointer::NONE`] for none.
    pub residual: Pointer,
    /// Whether the residual is added after the activation.
    pub residual_last: bool,
    /// The last function.
    pub activation: Activation,
}

impl Default for Epilogue {
    fn default() -> Epilogue {
        Epilogue {
            scale: 1.0,
            bias: Pointer::NONE,
            bias_scale: 1.0,
            bias_row: 0,
            bias_column: 0,
            residual: Pointer::NONE,
            residual_last: false,
            activation: Activation::Identity,
        }
    }
}

impl Epilogue {
    pub(crate) fn params(&self) -> params::Epilogue {
        let (activation, a, b) = self.activation.code();
        params::Epilogue {
            scale: self.scale,
            bias_scale: self.bias_scale,
            activation,
            a,
            b,
            residual_last: u32::from(self.residual_last),
            bias_row: self.bias_row,
            bias_column: self.bias_column,
        }
    }

    /// Bytes read and operations done for an output of `rows` x `columns` elements of `element_bytes`, `batches` times.
    pub(crate) fn cost(&self, element_bytes: u64, batches: u64, rows: u64, columns: u64) -> (u64, u64) {
        let outputs = batches * rows * columns;
        let mut bytes = 0;
        let mut operations = 0;
        if self.bias.is_some() {
            bytes += 4 * if self.bias_row > 0 { rows } else { 1 } * if self.bias_column > 0 { columns } else { 1 };
            operations += outputs;
        }
        if self.residual.is_some() {
            bytes += element_bytes * outputs;
            operations += outputs;
        }
        if self.activation != Activation::Identity {
            operations += outputs;
        }
        (bytes, operations)
    }
}
