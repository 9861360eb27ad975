// attention.cu: y = softmax(scale * q k^T + mask) v in one pass over k and v, without storing the scores.
//
// Each warp keeps a running maximum, sum and weighted value row for its four query rows (the online softmax) and rescales them when a tile of
// 32 keys brings a larger maximum. A lane scores one key of the tile against four queries, then owns every 32nd column of the output.
// Shapes  q, y [outer, heads, rows, size], k, v [outer, heads, columns, size], any strides but the last; size <= 128; f32 or f16
// Tiling  128 threads = 16 query rows; 32 keys and values at a time in shared memory
// Cost    bytes of q, k, v, y once per 16 rows for k and v; 4*rows*columns*size flop
// Roof    12 heads, 512x512x64, batch 8: 6.4 GFLOP at 67 TFLOP/s f32 (H100 SXM) = 96 us; not run on a GPU
// Test    tests/attention.rs: three loops in f64, absolute tolerance 2e-5 (f16: 4e-3)
#include "types.cuh"

constexpr unsigned WARPS = 4, ROWS = 4, KEYS = WARP, HEAD_MAX = 128, CHUNKS = HEAD_MAX / WARP;

template <class T>
__device__ __forceinline__ void attention(const AttentionParams& p) {
  using Queries = float[WARPS * ROWS][HEAD_MAX];
  using Keys = float[KEYS][HEAD_MAX + 1];  // a lane reads its own key: the odd stride spreads them over the banks
  using Values = float[KEYS][HEAD_MAX];
  ROTA_SHARED(Queries, queries);
  ROTA_SHARED(Keys, keys);
  ROTA_SHARED(Values, values);
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const unsigned outer = blockIdx.y / p.heads, head = blockIdx.y % p.heads;
  const unsigned block_row = blockIdx.x * WARPS * ROWS, row = block_row + warp * ROWS;
  const T* q = at<const T>(p.q) + outer * p.q_strides[0] + head * p.q_strides[1];
  const T* k = at<const T>(p.k) + outer * p.k_strides[0] + head * p.k_strides[1];
  const T* v = at<const T>(p.v) + outer * p.v_strides[0] + head * p.v_strides[1];

  for (unsigned place = threadIdx.x; place < WARPS * ROWS * p.size; place += WARPS * WARP) {
    const unsigned r = place / p.size, d = place % p.size;
    queries[r][d] = block_row + r < p.rows ? to_float(q[(block_row + r) * p.q_strides[2] + d]) * p.scale : 0.0f;
  }

  float largest[ROWS], sum[ROWS], out[ROWS][CHUNKS];
#pragma unroll
  for (unsigned r = 0; r < ROWS; r++) {
    largest[r] = -INFINITY, sum[r] = 0.0f;
#pragma unroll
    for (unsigned c = 0; c < CHUNKS; c++) out[r][c] = 0.0f;
  }

  for (unsigned first = 0; first < p.columns; first += KEYS) {
    __syncthreads();  // the last tile has been used
    for (unsigned place = threadIdx.x; place < KEYS * p.size; place += WARPS * WARP) {
      const unsigned key = place / p.size, d = place % p.size;
      keys[key][d] = first + key < p.columns ? to_float(k[(first + key) * p.k_strides[2] + d]) : 0.0f;
    }
    for (unsigned place = threadIdx.x; place < KEYS * p.v_size; place += WARPS * WARP) {
      const unsigned key = place / p.v_size, d = place % p.v_size;
      values[key][d] = first + key < p.columns ? to_float(v[(first + key) * p.v_strides[2] + d]) : 0.0f;
    }
    __syncthreads();

    float score[ROWS] = {};
    for (unsigned d = 0; d < p.size; d++) {
      const float key = keys[lane][d];
#pragma unroll
      for (unsigned r = 0; r < ROWS; r++) score[r] = fmaf(queries[warp * ROWS + r][d], key, score[r]);
    }
    const unsigned column = first + lane;
#pragma unroll
    for (unsigned r = 0; r < ROWS; r++) {
      const bool seen = column < p.columns && row + r < p.rows && (!p.causal || column + p.rows <= row + r + p.columns);
      if (seen && p.mask) {
        score[r] += to_float(at<const T>(p.mask)[outer * p.mask_strides[0] + head * p.mask_strides[1] +
                                                 (row + r) * p.mask_strides[2] + column * p.mask_strides[3]]);
      }
      if (!seen) score[r] = -INFINITY;
      const float above = fmaxf(largest[r], warp_max(score[r]));
      // Nothing seen yet: the exponentials below are to be 0, not NaN.
      const float shift = above == -INFINITY ? 0.0f : above, rescale = expf(largest[r] - shift);
      largest[r] = above;
      score[r] = expf(score[r] - shift);
      sum[r] = sum[r] * rescale + warp_sum(score[r]);
#pragma unroll
      for (unsigned c = 0; c < CHUNKS; c++) out[r][c] *= rescale;
    }
    for (unsigned key = 0; key < KEYS; key++) {
      float weight[ROWS];
#pragma unroll
      for (unsigned r = 0; r < ROWS; r++) weight[r] = __shfl_sync(FULL_WARP, score[r], key);
#pragma unroll
      for (unsigned c = 0; c < CHUNKS; c++) {
        if (c * WARP + lane >= p.v_size) break;
        const float value = values[key][c * WARP + lane];
#pragma unroll
        for (unsigned r = 0; r < ROWS; r++) out[r][c] = fmaf(weight[r], value, out[r][c]);
      }
    }
  }

  T* y = at<T>(p.y) + outer * p.y_strides[0] + head * p.y_strides[1];
#pragma unroll
  for (unsigned r = 0; r < ROWS; r++) {
    const float factor = sum[r] > 0.0f ? 1.0f / sum[r] : 0.0f;
#pragma unroll
    for (unsigned c = 0; c < CHUNKS; c++) {
      if (row + r < p.rows && c * WARP + lane < p.v_size) {
        y[(row + r) * p.y_strides[2] + c * WARP + lane] = from_float<T>(out[r][c] * factor);
      }
    }
  }
}

ROTA_KERNEL(rota_attention_f32, AttentionParams, 128, 3) { attention<float>(p); }
ROTA_KERNEL(rota_attention_f16, AttentionParams, 128, 3) { attention<f16>(p); }
