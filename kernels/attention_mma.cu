// attention_mma.cu: as attention.cu, on tensor cores: f16 operands, scores, weights' sums and outputs added up in f32.
//
// A warp has 16 query rows, whose fragments stay in registers, and walks over the keys 32 at a time: their scores are one product, the online
// softmax rescales sum and output when a row's maximum grows, and the weights, rounded to f16, are already laid out as the left operand of the
// second product. The next 32 keys and values are copied meanwhile (copies.cuh).
// Shapes  as attention.cu; f16; size and v_size multiples of 8 up to HEAD, starts and strides multiples of 16 bytes
// Tiling  128 threads = 64 query rows; 32 keys and values in each of two stages of shared memory
// Cost    bytes of q, k, v, y once per 64 rows for k and v; 4*rows*columns*size flop
// Roof    12 heads, 512x512x64, batch 8: 6.4 GFLOP at 989 TFLOP/s f16 (H100 SXM, dense) = 6.5 us, 25 MB at 3.35 TB/s = 7.5 us; not run on a GPU
// Test    tests/attention.rs: three loops in f64, absolute tolerance 4e-3
#include "copies.cuh"
#include "mma.cuh"

constexpr unsigned WARPS = 4, ROWS = 16 * WARPS, KEYS = 32, STAGES = 2;

template <unsigned HEAD>
struct Flash {
  static constexpr unsigned PITCH = HEAD + 8;  // halves from row to row: 16 bytes more, so that fragments hit each bank once
  using Tile = f16[KEYS][PITCH];
  using Memory = Tile[2 * STAGES];  // keys of all stages, then values
  static_assert(ROWS <= STAGES * KEYS, "the queries pass through the keys' memory");

  // `lines` rows from `first` on, of `size` columns; zeros outside.
  static __device__ __forceinline__ void copy(f16* target, const f16* source, uint64_t stride, unsigned lines, unsigned first,
                                              unsigned end, unsigned size) {
    for (unsigned place = threadIdx.x; place < lines * (HEAD / 8); place += WARPS * WARP) {
      const unsigned line = place / (HEAD / 8), column = place % (HEAD / 8) * 8;
      const bool inside = first + line < end && column < size;
      begin_copy(target + line * PITCH + column, inside ? source + (first + line) * stride + column : source, inside);
    }
  }

  // What is known of a thread's two rows, l / 4 and that + 8 of its warp's.
  struct Rows {
    float largest[2], sum[2];  // the sum of the thread's own columns
    float out[HEAD / 8][4];    // of 16 x 8 each, as mma has them
  };

  static __device__ __forceinline__ void scores(const uint32_t (&queries)[HEAD / 16][4], const Tile& keys, float (&score)[KEYS / 8][4]) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned c = 0; c < HEAD / 16; c++) {
#pragma unroll
      for (unsigned n = 0; n < KEYS / 8; n += 2) {
        uint32_t four[4];
        load_matrices(four, &keys[n * 8 + lane % 8 + lane / 16 * 8][c * 16 + lane / 8 % 2 * 8]);
        HalfPairs::mma(score[n], queries[c], {four[0], four[1]});
        HalfPairs::mma(score[n + 1], queries[c], {four[2], four[3]});
      }
    }
  }

  // Scale, mask, and what may not be seen; `row` is the first of the thread's two, `first` the tile's first key.
  static __device__ __forceinline__ void masked(const AttentionParams& p, const f16* mask, unsigned row, unsigned first,
                                                float (&score)[KEYS / 8][4]) {
#pragma unroll
    for (unsigned n = 0; n < KEYS / 8; n++) {
#pragma unroll
      for (unsigned i = 0; i < 4; i++) {
        const unsigned r = row + i / 2 * 8, column = first + n * 8 + threadIdx.x % 4 * 2 + i % 2;
        const bool seen = column < p.columns && r < p.rows && (!p.causal || column + p.rows <= r + p.columns);
        score[n][i] = seen ? score[n][i] * p.scale : -INFINITY;
        if (seen && mask) score[n][i] += to_float(mask[r * p.mask_strides[2] + column * p.mask_strides[3]]);
      }
    }
  }

  // The scores become weights; what was added up so far is rescaled.
  static __device__ __forceinline__ void weigh(float (&score)[KEYS / 8][4], Rows& rows) {
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
      float above = rows.largest[half];
#pragma unroll
      for (unsigned n = 0; n < KEYS / 8; n++) above = fmaxf(above, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
      // Four lanes have a row.
      above = fmaxf(above, __shfl_xor_sync(FULL_WARP, above, 1));
      above = fmaxf(above, __shfl_xor_sync(FULL_WARP, above, 2));
      // Nothing seen yet: the exponentials below are to be 0, not NaN.
      const float shift = above == -INFINITY ? 0.0f : above, rescale = expf(rows.largest[half] - shift);
      rows.largest[half] = above;
      rows.sum[half] *= rescale;
#pragma unroll
      for (unsigned n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (unsigned i = 2 * half; i < 2 * half + 2; i++) {
          score[n][i] = expf(score[n][i] - shift);
          rows.sum[half] += score[n][i];
        }
      }
#pragma unroll
      for (unsigned x = 0; x < HEAD / 8; x++) rows.out[x][2 * half] *= rescale, rows.out[x][2 * half + 1] *= rescale;
    }
  }

  static __device__ __forceinline__ void add_values(const float (&weight)[KEYS / 8][4], const Tile& values, Rows& rows) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned j = 0; j < KEYS / 16; j++) {
      uint32_t left[4];
#pragma unroll
      for (unsigned i = 0; i < 4; i++) left[i] = HalfPairs::word(weight[2 * j + i / 2][i % 2 * 2], weight[2 * j + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (unsigned x = 0; x < HEAD / 8; x += 2) {
        uint32_t four[4];
        load_matrices_transposed(four, &values[j * 16 + lane % 16][x * 8 + lane / 16 * 8]);
        HalfPairs::mma(rows.out[x], left, {four[0], four[1]});
        HalfPairs::mma(rows.out[x + 1], left, {four[2], four[3]});
      }
    }
  }

  static __device__ __forceinline__ void store(const AttentionParams& p, f16* y, unsigned row, const Rows& rows) {
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
      float sum = rows.sum[half];
      sum += __shfl_xor_sync(FULL_WARP, sum, 1);
      sum += __shfl_xor_sync(FULL_WARP, sum, 2);
      const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
      const unsigned r = row + half * 8;
#pragma unroll
      for (unsigned x = 0; x < HEAD / 8; x++) {
        if (r >= p.rows || x * 8 >= p.v_size) continue;
        *reinterpret_cast<uint32_t*>(y + r * p.y_strides[2] + x * 8 + threadIdx.x % 4 * 2) =
            HalfPairs::word(rows.out[x][2 * half] * factor, rows.out[x][2 * half + 1] * factor);
      }
    }
  }

  static __device__ __forceinline__ void run(const AttentionParams& p) {
    ROTA_SHARED(Memory, memory);
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned outer = blockIdx.y / p.heads, head = blockIdx.y % p.heads;
    const unsigned block_row = blockIdx.x * ROWS, row = block_row + warp * 16 + lane / 4;
    const auto of = [&](uint64_t base, const uint64_t(&strides)[3]) { return at<f16>(base) + outer * strides[0] + head * strides[1]; };
    const f16 *k = of(p.k, p.k_strides), *v = of(p.v, p.v_strides);
    const f16* mask = p.mask ? at<const f16>(p.mask) + outer * p.mask_strides[0] + head * p.mask_strides[1] : nullptr;

    copy(&memory[0][0][0], of(p.q, p.q_strides), p.q_strides[2], ROWS, block_row, p.rows, p.size);
    close_copies();
    wait_for_copies<0>();
    __syncthreads();
    uint32_t queries[HEAD / 16][4];
#pragma unroll
    for (unsigned c = 0; c < HEAD / 16; c++)
      load_matrices(queries[c], &memory[0][0][0] + (warp * 16 + lane % 16) * PITCH + c * 16 + lane / 16 * 8);
    __syncthreads();  // the queries are in registers

    const auto begin = [&](unsigned first, unsigned stage) {
      if (first < p.columns) {
        copy(&memory[stage][0][0], k, p.k_strides[2], KEYS, first, p.columns, p.size);
        copy(&memory[STAGES + stage][0][0], v, p.v_strides[2], KEYS, first, p.columns, p.v_size);
      }
      close_copies();
    };
    Rows rows = {{-INFINITY, -INFINITY}, {}, {}};
    begin(0, 0);
    for (unsigned first = 0, stage = 0; first < p.columns; first += KEYS, stage ^= 1) {
      wait_for_copies<0>();
      __syncthreads();  // these keys are there, and the last ones' stage is free
      begin(first + KEYS, stage ^ 1);
      float score[KEYS / 8][4] = {};
      scores(queries, memory[stage], score);
      masked(p, mask, row, first, score);
      weigh(score, rows);
      add_values(score, memory[STAGES + stage], rows);
    }
    store(p, of(p.y, p.y_strides), row, rows);
  }
};

ROTA_KERNEL(rota_attention_f16_mma_32, AttentionParams, 128, 4) { Flash<32>::run(p); }
ROTA_KERNEL(rota_attention_f16_mma_64, AttentionParams, 128, 3) { Flash<64>::run(p); }
ROTA_KERNEL(rota_attention_f16_mma_128, AttentionParams, 128, 2) { Flash<128>::run(p); }
