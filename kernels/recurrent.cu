// recurrent.cu: one step of an LSTM, GRU or plain recurrent layer.
//
// The input's part of all steps' gates is one GEMM before; a step adds the hidden state's part and applies the cell. A warp has one
// hidden unit: its lanes stride over the state, and the weights that they read serve four items at once.
// Gate order is ONNX's: LSTM i o f c, GRU z r h.
// Shapes  gates [batch, G * hidden], weights [G * hidden, hidden], states [batch, hidden]; f32
// Tiling  128 threads = 4 units; block rows are fours of items
// Cost    4*G*hidden^2 bytes of weights per four items, 2*G*hidden^2 flop per item: bound by L2, where the weights stay
// Roof    LSTM of 128, batch 32: 4.2 MFLOP, 0.26 MB of weights: bound by the launch, 2-3 us (H100 SXM); not run on a GPU
// Test    tests/recurrent.rs: plain loops, absolute tolerance 1e-5
#include "epilogue.cuh"

constexpr unsigned ITEMS = 4;

// The hidden unit and the items that this warp computes; after `sums`, each lane has every sum.
template <unsigned GATES>
struct Cell {
  const RecurrentParams& p;
  unsigned lane, unit, first, items;

  __device__ __forceinline__ explicit Cell(const RecurrentParams& params) : p(params) {
    lane = threadIdx.x % WARP;
    unit = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    first = blockIdx.y * ITEMS;
    items = p.batch - first < ITEMS ? p.batch - first : ITEMS;
  }

  // sums[g][i] = weights[g, unit] . state[i]
  __device__ __forceinline__ void recur(uint64_t state, unsigned first_gate, float (&sums)[GATES][ITEMS]) const {
#pragma unroll
    for (unsigned g = 0; g < GATES; g++) {
#pragma unroll
      for (unsigned i = 0; i < ITEMS; i++) sums[g][i] = 0.0f;
    }
    if (!state) return;
    for (unsigned k = lane; k < p.hidden; k += WARP) {
      float values[ITEMS];
#pragma unroll
      for (unsigned i = 0; i < ITEMS; i++) {
        values[i] = i < items ? at<const float>(state)[static_cast<size_t>(first + i) * p.hidden + k] : 0.0f;
      }
#pragma unroll
      for (unsigned g = 0; g < GATES; g++) {
        const float weight = at<const float>(p.weights)[static_cast<size_t>((first_gate + g) * p.hidden + unit) * p.hidden + k];
#pragma unroll
        for (unsigned i = 0; i < ITEMS; i++) sums[g][i] = fmaf(weight, values[i], sums[g][i]);
      }
    }
#pragma unroll
    for (unsigned g = 0; g < GATES; g++) {
#pragma unroll
      for (unsigned i = 0; i < ITEMS; i++) sums[g][i] = warp_sum(sums[g][i]);
    }
  }

  __device__ __forceinline__ size_t place(unsigned item) const { return static_cast<size_t>(first + item) * p.hidden + unit; }

  __device__ __forceinline__ float input(unsigned item, unsigned gate) const {
    return at<const float>(p.gates)[static_cast<size_t>(first + item) * p.gates_row + gate * p.hidden + unit];
  }

  // An item's old state; zero where there is none yet.
  __device__ __forceinline__ float old(uint64_t state, unsigned item) const {
    return state ? at<const float>(state)[place(item)] : 0.0f;
  }

  __device__ __forceinline__ bool ended(unsigned item) const {
    return p.lengths && static_cast<int>(p.step) >= at<const int>(p.lengths)[first + item];
  }

  __device__ __forceinline__ void store(unsigned item, float hidden) const {
    const bool past = ended(item);
    at<float>(p.hidden_out)[place(item)] = past ? old(p.hidden_in, item) : hidden;
    if (p.output) at<float>(p.output)[place(item)] = past ? 0.0f : hidden;
  }
};

// Each lane finishes one item: `body(item, sums of that item)`; selecting by comparison keeps the sums in registers.
template <unsigned GATES, class Body>
__device__ __forceinline__ void per_item(const Cell<GATES>& cell, const float (&sums)[GATES][ITEMS], const Body& body) {
  if (cell.lane >= cell.items) return;
  float mine[GATES];
#pragma unroll
  for (unsigned g = 0; g < GATES; g++) {
    mine[g] = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < ITEMS; i++) mine[g] = cell.lane == i ? sums[g][i] : mine[g];
  }
  body(cell.lane, mine);
}

ROTA_KERNEL(rota_lstm, RecurrentParams, 128, 4) {
  const Cell<4> cell(p);
  if (cell.unit >= p.hidden) return;  // whole warps leave
  float sums[4][ITEMS];
  cell.recur(p.hidden_in, 0, sums);
  per_item(cell, sums, [&](unsigned item, const float (&recurrent)[4]) {
    const float* peephole = p.peepholes ? at<const float>(p.peepholes) + cell.unit : nullptr;
    const float before = cell.old(p.cell_in, item);
    const float in = cell.input(item, 0) + recurrent[0] + (peephole ? peephole[0] * before : 0.0f);
    const float forget = cell.input(item, 2) + recurrent[2] + (peephole ? peephole[2 * p.hidden] * before : 0.0f);
    const float state = sigmoid(forget) * before + sigmoid(in) * tanhf(cell.input(item, 3) + recurrent[3]);
    const float out = cell.input(item, 1) + recurrent[1] + (peephole ? peephole[p.hidden] * state : 0.0f);
    at<float>(p.cell_out)[cell.place(item)] = cell.ended(item) ? before : state;
    cell.store(item, sigmoid(out) * tanhf(state));
  });
}

// With linear_before_reset: the reset gate acts on the product, so all three gates come out of one pass.
ROTA_KERNEL(rota_gru, RecurrentParams, 128, 4) {
  const Cell<3> cell(p);
  if (cell.unit >= p.hidden) return;
  float sums[3][ITEMS];
  cell.recur(p.hidden_in, 0, sums);
  per_item(cell, sums, [&](unsigned item, const float (&recurrent)[3]) {
    const float update = sigmoid(cell.input(item, 0) + recurrent[0]), reset = sigmoid(cell.input(item, 1) + recurrent[1]);
    const float bias = p.bias ? at<const float>(p.bias)[cell.unit] : 0.0f;
    const float fresh = tanhf(cell.input(item, 2) + reset * (recurrent[2] + bias));
    cell.store(item, (1.0f - update) * fresh + update * cell.old(p.hidden_in, item));
  });
}

// Without it the reset gate acts on the state, which the product then needs whole: first z and r * state, then the rest.
ROTA_KERNEL(rota_gru_reset, RecurrentParams, 128, 4) {
  const Cell<2> cell(p);
  if (cell.unit >= p.hidden) return;
  float sums[2][ITEMS];
  cell.recur(p.hidden_in, 0, sums);
  per_item(cell, sums, [&](unsigned item, const float (&recurrent)[2]) {
    at<float>(p.cell_out)[cell.place(item)] = sigmoid(cell.input(item, 0) + recurrent[0]);
    const float reset = sigmoid(cell.input(item, 1) + recurrent[1]);
    at<float>(p.hidden_out)[cell.place(item)] = reset * cell.old(p.hidden_in, item);
  });
}

// cell_in has z, cell_out (read here) r * state.
ROTA_KERNEL(rota_gru_update, RecurrentParams, 128, 4) {
  const Cell<1> cell(p);
  if (cell.unit >= p.hidden) return;
  float sums[1][ITEMS];
  cell.recur(p.cell_out, 2, sums);
  per_item(cell, sums, [&](unsigned item, const float (&recurrent)[1]) {
    const float update = cell.old(p.cell_in, item);
    const float fresh = tanhf(cell.input(item, 2) + recurrent[0]);
    cell.store(item, (1.0f - update) * fresh + update * cell.old(p.hidden_in, item));
  });
}

ROTA_KERNEL(rota_rnn, RecurrentParams, 128, 4) {
  const Cell<1> cell(p);
  if (cell.unit >= p.hidden) return;
  float sums[1][ITEMS];
  cell.recur(p.hidden_in, 0, sums);
  per_item(cell, sums, [&](unsigned item, const float (&recurrent)[1]) { cell.store(item, tanhf(cell.input(item, 0) + recurrent[0])); });
}
