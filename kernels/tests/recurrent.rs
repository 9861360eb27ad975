//! `recurrent.cu` on the host: sequences of steps against ONNX's formulas.

mod support;

use rota_kernels::host::{Host, Memory};
use rota_kernels::{Cell, Pointer, RecurrentStep};
use support::{Numbers, assert_close};

const STEPS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Lstm,
    Peepholes,
    Gru,
    GruLinear,
    Rnn,
}

/// A sequence's input gates and weights, and the reference that walks through it.
struct Layer {
    kind: Kind,
    batch: usize,
    hidden: usize,
    gates: Vec<f32>,
    weights: Vec<f32>,
    extra: Vec<f32>,
    lengths: Option<Vec<i32>>,
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl Layer {
    fn gate_count(&self) -> usize {
        match self.kind {
            Kind::Lstm | Kind::Peepholes => 4,
            Kind::Gru | Kind::GruLinear => 3,
            Kind::Rnn => 1,
        }
    }

    /// One item's next hidden and cell state.
    fn next(&self, step: usize, item: usize, hidden: &[f32], cell: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (size, gates) = (self.hidden, self.gate_count());
        let input =
            |gate: usize, unit: usize| self.gates[(step * self.batch + item) * gates * size + gate * size + unit];
        let recur = |gate: usize, unit: usize, state: &[f32]| -> f32 {
            (0..size).map(|k| self.weights[(gate * size + unit) * size + k] * state[k]).sum()
        };
        let reset: Vec<f32> = match self.kind {
            Kind::Gru => (0..size).map(|u| sigmoid(input(1, u) + recur(1, u, hidden)) * hidden[u]).collect(),
            _ => Vec::new(),
        };
        let unit = |u: usize| match self.kind {
            Kind::Rnn => ((input(0, u) + recur(0, u, hidden)).tanh(), 0.0),
            Kind::Lstm | Kind::Peepholes => {
                let peephole = |gate: usize| if self.kind == Kind::Lstm { 0.0 } else { self.extra[gate * size + u] };
                let i = sigmoid(input(0, u) + recur(0, u, hidden) + peephole(0) * cell[u]);
                let f = sigmoid(input(2, u) + recur(2, u, hidden) + peephole(2) * cell[u]);
                let c = f * cell[u] + i * (input(3, u) + recur(3, u, hidden)).tanh();
                let o = sigmoid(input(1, u) + recur(1, u, hidden) + peephole(1) * c);
                (o * c.tanh(), c)
            }
            Kind::Gru | Kind::GruLinear => {
                let z = sigmoid(input(0, u) + recur(0, u, hidden));
                let fresh = if self.kind == Kind::Gru {
                    (input(2, u) + recur(2, u, &reset)).tanh()
                } else {
                    let r = sigmoid(input(1, u) + recur(1, u, hidden));
                    (input(2, u) + r * (recur(2, u, hidden) + self.extra[u])).tanh()
                };
                ((1.0 - z) * fresh + z * hidden[u], 0.0)
            }
        };
        (0..size).map(unit).unzip()
    }

    /// Outputs of all steps, and the last hidden and cell states.
    fn reference(&self) -> [Vec<f32>; 3] {
        let (mut output, mut last, mut cells) = (vec![0.0; STEPS * self.batch * self.hidden], Vec::new(), Vec::new());
        for item in 0..self.batch {
            let (mut hidden, mut cell) = (vec![0.0; self.hidden], vec![0.0; self.hidden]);
            let length = self.lengths.as_ref().map_or(STEPS, |lengths| lengths[item] as usize);
            for step in 0..length {
                (hidden, cell) = self.next(step, item, &hidden, &cell);
                let start = (step * self.batch + item) * self.hidden;
                output[start..start + self.hidden].copy_from_slice(&hidden);
            }
            last.extend(hidden);
            cells.extend(cell);
        }
        [output, last, cells]
    }

    fn run(&self, threads: u32) -> [Vec<f32>; 3] {
        let mut memory = Memory::default();
        let state = self.batch * self.hidden;
        let mut states = || [memory.alloc(state * 4), memory.alloc(state * 4)];
        let (hidden, cells, scratch) = (states(), states(), states());
        let output = memory.upload(&vec![9.0_f32; STEPS * state]);
        let extra = memory.upload(&self.extra);
        let lengths = self.lengths.as_ref().map_or(Pointer::NONE, |lengths| memory.upload(lengths));
        let weights = memory.upload(&self.weights);
        let mut outputs = Vec::new();
        for step in 0..STEPS {
            let before = |pair: [Pointer; 2]| if step == 0 { Pointer::NONE } else { pair[step % 2] };
            let (cell_in, cell_out) = (before(cells), cells[(step + 1) % 2]);
            let cell = match self.kind {
                Kind::Lstm => Cell::Lstm { cell_in, cell_out, peepholes: Pointer::NONE },
                Kind::Peepholes => Cell::Lstm { cell_in, cell_out, peepholes: extra },
                Kind::GruLinear => Cell::GruLinearBeforeReset { bias: extra },
                Kind::Gru => Cell::Gru { scratch },
                Kind::Rnn => Cell::Rnn,
            };
            let gates = &self.gates[step * state * self.gate_count()..][..state * self.gate_count()];
            let recurrent = RecurrentStep {
                cell,
                batch: self.batch as u32,
                hidden: self.hidden as u32,
                step: step as u32,
                gates: memory.upload(gates),
                gates_row: (self.gate_count() * self.hidden) as u32,
                weights,
                hidden_in: before(hidden),
                hidden_out: hidden[(step + 1) % 2],
                lengths,
                output,
            };
            for launch in recurrent.launches_with(threads).unwrap() {
                Host::load().unwrap().run(&launch, &mut memory).unwrap();
            }
            outputs.extend(memory.download::<f32>(output, state));
        }
        let [hidden, cells] = [hidden, cells].map(|pair| memory.download(pair[STEPS % 2], state));
        [outputs, hidden, cells]
    }
}

#[test]
fn sequences_of_every_cell_equal_onnx_formulas() {
    for kind in [Kind::Lstm, Kind::Peepholes, Kind::Gru, Kind::GruLinear, Kind::Rnn] {
        for (batch, hidden) in [(1, 1), (3, 5), (6, 33), (9, 48)] {
            for with_lengths in [false, true] {
                let mut numbers = Numbers::new((batch * hidden) as u64);
                let mut layer =
                    Layer { kind, batch, hidden, gates: vec![], weights: vec![], extra: vec![], lengths: None };
                layer.gates = numbers.take(STEPS * batch * layer.gate_count() * hidden);
                layer.weights = numbers.take(layer.gate_count() * hidden * hidden);
                layer.extra = numbers.take(3 * hidden);
                layer.lengths = with_lengths.then(|| (0..batch).map(|item| (item % (STEPS + 1)) as i32).collect());
                let expected = layer.reference();
                for threads in [32, 64, 128] {
                    let found = layer.run(threads);
                    let what = format!("{kind:?}, {batch} items of {hidden}, lengths: {with_lengths}");
                    assert_close(&found[0], &expected[0], 2e-5, &what);
                    assert_close(&found[1], &expected[1], 2e-5, &what);
                    if matches!(kind, Kind::Lstm | Kind::Peepholes) {
                        assert_close(&found[2], &expected[2], 2e-5, &what);
                    }
                }
            }
        }
    }
}
