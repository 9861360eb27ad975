//! Steps of recurrent layers: `recurrent.cu`.

use crate::launch::{Cost, GRID_YZ_MAX, Kernel, Launch, Unfit};
use crate::params::{Pointer, RecurrentParams};

const BLOCKS: &[u32] = &[32, 64, 128];
pub(crate) static LSTM: Kernel = Kernel::new::<RecurrentParams>("rota_lstm", BLOCKS);
pub(crate) static GRU: Kernel = Kernel::new::<RecurrentParams>("rota_gru", BLOCKS);
pub(crate) static GRU_RESET: Kernel = Kernel::new::<RecurrentParams>("rota_gru_reset", BLOCKS);
pub(crate) static GRU_UPDATE: Kernel = Kernel::new::<RecurrentParams>("rota_gru_update", BLOCKS);
pub(crate) static RNN: Kernel = Kernel::new::<RecurrentParams>("rota_rnn", BLOCKS);

/// The layer's cell, and what only it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// Gates i, o, f, c.
    Lstm {
        /// `[batch, hidden]`, or [`Pointer::NONE`] for zeros.
        cell_in: Pointer,
        /// `[batch, hidden]`
        cell_out: Pointer,
        /// `[3 * hidden]` for i, o and f, or [`Pointer::NONE`].
        peepholes: Pointer,
    },
    /// Gates z, r, h; ONNX's linear_before_reset = 1.
    GruLinearBeforeReset {
        /// The recurrent bias of h, `[hidden]`, or [`Pointer::NONE`]. Those of z and r are part of `gates`.
        bias: Pointer,
    },
    /// Gates z, r, h; ONNX's linear_before_reset = 0: two launches.
    Gru {
        /// `[batch, hidden]` each, for the update gate and for what the reset gate left of the state.
        scratch: [Pointer; 2],
    },
    /// One gate, tanh.
    Rnn,
}

impl Cell {
    /// Gates, and so the rows of the weights per hidden unit.
    pub fn gates(self) -> u32 {
        match self {
            Cell::Lstm { .. } => 4,
            Cell::GruLinearBeforeReset { .. } | Cell::Gru { .. } => 3,
            Cell::Rnn => 1,
        }
    }
}

/// One step for all items, f32. The input's part of the gates, biases included, comes from a GEMM before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecurrentStep {
    /// The layer's cell.
    pub cell: Cell,
    /// Items.
    pub batch: u32,
    /// Units.
    pub hidden: u32,
    /// Number of this step, for `lengths`.
    pub step: u32,
    /// `[batch, gates * hidden]`
    pub gates: Pointer,
    /// Elements between two items of `gates`.
    pub gates_row: u32,
    /// `[gates * hidden, hidden]`
    pub weights: Pointer,
    /// `[batch, hidden]`, or [`Pointer::NONE`] for zeros.
    pub hidden_in: Pointer,
    /// `[batch, hidden]`; not `hidden_in`, which all units still read.
    pub hidden_out: Pointer,
    /// i32 `[batch]`: from its length on, an item keeps its state. [`Pointer::NONE`] when all are as long as the sequence.
    pub lengths: Pointer,
    /// `[batch, hidden]`: `hidden_out` again, but zeros past an item's length. [`Pointer::NONE`] for none.
    pub output: Pointer,
}

impl RecurrentStep {
    /// The launches: one, or two for a GRU whose reset gate acts on the state.
    pub fn launches(&self) -> Result<Vec<Launch>, Unfit> {
        self.launches_with(128)
    }

    /// The launches with a block of `threads`.
    pub fn launches_with(&self, threads: u32) -> Result<Vec<Launch>, Unfit> {
        let items = u64::from(self.batch).div_ceil(4);
        if items > GRID_YZ_MAX {
            let max = GRID_YZ_MAX * 4;
            return Err(Unfit::TooLarge { kernel: "recurrent", what: "batch", value: u64::from(self.batch), max });
        }
        let params = RecurrentParams {
            gates: self.gates,
            weights: self.weights,
            hidden_in: self.hidden_in,
            cell_in: Pointer::NONE,
            hidden_out: self.hidden_out,
            cell_out: Pointer::NONE,
            peepholes: Pointer::NONE,
            bias: Pointer::NONE,
            lengths: self.lengths,
            output: self.output,
            batch: self.batch,
            hidden: self.hidden,
            step: self.step,
            gates_row: self.gates_row,
        };
        let grid = [self.hidden.div_ceil(threads / 32).max(1), items.max(1) as u32, 1];
        let launch = |kernel: &'static Kernel, gates: u32, params| {
            Launch::new(kernel, grid, threads, params, self.cost(u64::from(gates)))
        };
        Ok(match self.cell {
            Cell::Lstm { cell_in, cell_out, peepholes } => {
                vec![launch(&LSTM, 4, RecurrentParams { cell_in, cell_out, peepholes, ..params })]
            }
            Cell::GruLinearBeforeReset { bias } => vec![launch(&GRU, 3, RecurrentParams { bias, ..params })],
            Cell::Gru { scratch: [update, reset] } => vec![
                launch(&GRU_RESET, 2, RecurrentParams { cell_out: update, hidden_out: reset, ..params }),
                launch(&GRU_UPDATE, 1, RecurrentParams { cell_in: update, cell_out: reset, ..params }),
            ],
            Cell::Rnn => vec![launch(&RNN, 1, params)],
        })
    }

    fn cost(&self, gates: u64) -> Cost {
        let (batch, hidden) = (u64::from(self.batch), u64::from(self.hidden));
        Cost {
            bytes_read: 4 * (gates * hidden * hidden + batch * hidden * (gates + 2)),
            bytes_written: 8 * batch * hidden,
            flops: batch * hidden * gates * (2 * hidden + 4),
        }
    }
}
