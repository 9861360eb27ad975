// gemm_tile.cuh: one block's tile of a matrix product in f32, whatever the operands are read through.
//
// The block walks the depth in steps of DEPTH. While it multiplies one step out of shared memory, each thread
// already holds its share of the next in registers, which then goes to the other of two buffers: loads overlap
// arithmetic, and one barrier per step suffices. Tiles lie depth-major ([depth][row]), so that a thread reads its rows and columns
// as float4 without bank conflicts; PAD keeps the transposing stores to two-way conflicts.
//
// A reader gives one operand: `Reader::hold(outer)` prepares what depends on the row (or column) alone, `load` one element.
#pragma once

#include "epilogue.cuh"

// Rows x columns of the tile, its depth, and the rows x columns that each thread accumulates.
template <unsigned ROWS_, unsigned COLUMNS_, unsigned DEPTH_, unsigned ROWS_EACH_, unsigned COLUMNS_EACH_>
struct Tile {
  static constexpr unsigned ROWS = ROWS_, COLUMNS = COLUMNS_, DEPTH = DEPTH_;
  static constexpr unsigned ROWS_EACH = ROWS_EACH_, COLUMNS_EACH = COLUMNS_EACH_;
  static constexpr unsigned THREADS_X = COLUMNS / COLUMNS_EACH, THREADS_Y = ROWS / ROWS_EACH;
  static constexpr unsigned THREADS = THREADS_X * THREADS_Y;
  static constexpr unsigned PAD = 4;
  static_assert(ROWS_EACH % 4 == 0 || ROWS_EACH < 4, "rows are read as float4 or one by one");
  static_assert(COLUMNS_EACH % 4 == 0, "columns are read as float4");
};

// A thread's share of one operand's step: SIZE x DEPTH elements, four at a time, spread over THREADS.
template <unsigned SIZE, unsigned DEPTH, unsigned THREADS>
struct Share {
  static constexpr unsigned FOURS = SIZE * DEPTH / 4 / THREADS;
  static_assert(SIZE * DEPTH % (4 * THREADS) == 0, "each thread has whole fours");
  Four<float> four[FOURS];
};

// Element (outer, depth) at base + outer * outer_stride + depth * depth_stride, zero outside of the matrix.
// Either stride may be 1; `vector` says that fours along it are aligned and do not straddle the end.
template <class T>
struct Strided {
  const T* base;
  unsigned outers, depths, outer_stride, depth_stride;
  bool vector;

  __device__ __forceinline__ float load(unsigned outer, unsigned depth) const {
    if (outer >= outers || depth >= depths) return 0.0f;
    return to_float(base[static_cast<size_t>(outer) * outer_stride + static_cast<size_t>(depth) * depth_stride]);
  }

  // Whether neighbours in memory are neighbours along the depth.
  __device__ __forceinline__ bool along_depth() const { return depth_stride == 1; }

  // Four along the depth, or four along the outer dimension.
  __device__ __forceinline__ Four<float> load4(unsigned outer, unsigned depth, bool deep) const {
    Four<float> out;
    if (vector) {
      if (outer >= outers || depth >= depths) return Four<float>{{0.0f, 0.0f, 0.0f, 0.0f}};
      const size_t place = static_cast<size_t>(outer) * outer_stride + static_cast<size_t>(depth) * depth_stride;
      const Four<T> in = *reinterpret_cast<const Four<T>*>(base + place);
#pragma unroll
      for (unsigned i = 0; i < 4; i++) out.v[i] = to_float(in.v[i]);
      return out;
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++) out.v[i] = deep ? load(outer, depth + i) : load(outer + i, depth);
    return out;
  }

  template <unsigned SIZE, unsigned DEPTH, unsigned THREADS>
  __device__ __forceinline__ void fetch(Share<SIZE, DEPTH, THREADS>& share, unsigned first, unsigned step) const {
    const bool deep = along_depth();
#pragma unroll
    for (unsigned i = 0; i < share.FOURS; i++) {
      const unsigned place = threadIdx.x + i * THREADS;
      if (deep) {
        share.four[i] = load4(first + place / (DEPTH / 4), step + place % (DEPTH / 4) * 4, true);
      } else {
        share.four[i] = load4(first + place % (SIZE / 4) * 4, step + place / (SIZE / 4), false);
      }
    }
  }

  template <unsigned SIZE, unsigned DEPTH, unsigned THREADS, unsigned WIDTH>
  __device__ __forceinline__ void put(const Share<SIZE, DEPTH, THREADS>& share, float (&tile)[DEPTH][WIDTH]) const {
    const bool deep = along_depth();
#pragma unroll
    for (unsigned i = 0; i < share.FOURS; i++) {
      const unsigned place = threadIdx.x + i * THREADS;
      if (deep) {
        const unsigned outer = place / (DEPTH / 4), depth = place % (DEPTH / 4) * 4;
#pragma unroll
        for (unsigned j = 0; j < 4; j++) tile[depth + j][outer] = share.four[i].v[j];
      } else {
        const unsigned outer = place % (SIZE / 4) * 4, depth = place / (SIZE / 4);
        *reinterpret_cast<Four<float>*>(&tile[depth][outer]) = share.four[i];
      }
    }
  }
};

// sums[r][c] += tile of a times tile of b, over the whole depth.
template <class T, class A, class B>
__device__ __forceinline__ void multiply_tile(const A& a, const B& b, unsigned first_row, unsigned first_column,
                                              unsigned depth, float (&sums)[T::ROWS_EACH][T::COLUMNS_EACH]) {
  using TileA = float[2][T::DEPTH][T::ROWS + T::PAD];
  using TileB = float[2][T::DEPTH][T::COLUMNS + T::PAD];
  ROTA_SHARED(TileA, tile_a);
  ROTA_SHARED(TileB, tile_b);
  const unsigned row = threadIdx.x / T::THREADS_X * T::ROWS_EACH, column = threadIdx.x % T::THREADS_X * T::COLUMNS_EACH;

  Share<T::ROWS, T::DEPTH, T::THREADS> share_a;
  Share<T::COLUMNS, T::DEPTH, T::THREADS> share_b;
  a.fetch(share_a, first_row, 0);
  b.fetch(share_b, first_column, 0);
  a.put(share_a, tile_a[0]);
  b.put(share_b, tile_b[0]);
  __syncthreads();

  unsigned now = 0;
  for (unsigned step = 0; step < depth; step += T::DEPTH) {
    const bool more = step + T::DEPTH < depth;
    if (more) {
      a.fetch(share_a, first_row, step + T::DEPTH);
      b.fetch(share_b, first_column, step + T::DEPTH);
    }
    // Unrolled further, the fragments of several depths at once no longer fit the registers.
#pragma unroll 4
    for (unsigned d = 0; d < T::DEPTH; d++) {
      float left[T::ROWS_EACH], right[T::COLUMNS_EACH];
#pragma unroll
      for (unsigned r = 0; r < T::ROWS_EACH; r++) left[r] = tile_a[now][d][row + r];
#pragma unroll
      for (unsigned c = 0; c < T::COLUMNS_EACH; c++) right[c] = tile_b[now][d][column + c];
#pragma unroll
      for (unsigned r = 0; r < T::ROWS_EACH; r++) {
#pragma unroll
        for (unsigned c = 0; c < T::COLUMNS_EACH; c++) sums[r][c] = fmaf(left[r], right[c], sums[r][c]);
      }
    }
    if (more) {
      a.put(share_a, tile_a[now ^ 1]);
      b.put(share_b, tile_b[now ^ 1]);
    }
    __syncthreads();
    now ^= 1;
  }
}

// Hands every sum of the tile to `store(row, column, sum)`, both within the tile. A band of rows at a time goes through shared memory, so that
// a warp stores neighbouring columns, and what `store` does is compiled once per band and not once per sum.
template <class T, class Store>
__device__ __forceinline__ void store_tile(const float (&sums)[T::ROWS_EACH][T::COLUMNS_EACH], const Store& store) {
  using Band = float[T::THREADS_Y][T::COLUMNS + T::PAD];
  ROTA_SHARED(Band, band);
  const unsigned column = threadIdx.x % T::THREADS_X * T::COLUMNS_EACH;
#pragma unroll
  for (unsigned r = 0; r < T::ROWS_EACH; r++) {
#pragma unroll
    for (unsigned c = 0; c < T::COLUMNS_EACH; c++) band[threadIdx.x / T::THREADS_X][column + c] = sums[r][c];
    __syncthreads();
#pragma unroll 1
    for (unsigned place = threadIdx.x; place < T::THREADS_Y * T::COLUMNS; place += T::THREADS) {
      const unsigned y = place / T::COLUMNS, x = place % T::COLUMNS;
      store(y * T::ROWS_EACH + r, x, band[y][x]);
    }
    __syncthreads();
  }
}
