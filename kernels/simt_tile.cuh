// simt_tile.cuh: one block's tile of a matrix product in f32, multiplied by ordinary cores.
//
// The block walks the depth in steps of DEPTH. While it multiplies one step out of shared memory, each thread
// already holds its share of the next in registers, which then goes to the other of two buffers: loads overlap
// arithmetic, and one barrier per step suffices. Tiles lie depth-major ([depth][row]), so that a thread reads its rows and columns
// as 16 bytes without bank conflicts; PAD keeps the transposing stores to two-way conflicts.
#pragma once

#include "readers.cuh"

// Of each file its own: one tile in two files would be one place in shared memory for the kernels of both, and room lost around it.
namespace {

// Rows x columns of the tile, its depth, the rows x columns that each thread accumulates, and the slices.
//
// Slices are for flat tiles, whose few sums would leave each thread too few to reuse what it reads: each slice of threads has all of the tile,
// takes its part of every step's depth, and the slices are added up at the end.
template <unsigned ROWS_, unsigned COLUMNS_, unsigned DEPTH, unsigned ROWS_EACH, unsigned COLUMNS_EACH, unsigned SLICES = 1>
struct SimtTile {
  static constexpr unsigned ROWS = ROWS_, COLUMNS = COLUMNS_, PAD = 4;
  static constexpr unsigned THREADS_X = COLUMNS / COLUMNS_EACH, THREADS_Y = ROWS / ROWS_EACH;
  static constexpr unsigned SLICE = THREADS_X * THREADS_Y, THREADS = SLICE * SLICES;
  using Sums = float[ROWS_EACH][COLUMNS_EACH];
  using Element = float;

  // A thread's share of one operand's step: SIZE x DEPTH elements, four at a time, spread over the threads.
  template <unsigned SIZE>
  struct Share {
    static constexpr unsigned FOURS = SIZE * DEPTH / 4 / THREADS;
    static_assert(SIZE * DEPTH % (4 * THREADS) == 0, "each thread has whole fours");
    static_assert(THREADS % (SIZE / 4) == 0, "a thread's fours across the depth are of the same rows or columns");
    Four<float> four[FOURS];

    template <class Reader>
    __device__ __forceinline__ void fetch(const Reader& reader, unsigned first, unsigned step) {
      const bool deep = reader.along_depth();
#pragma unroll
      for (unsigned i = 0; i < FOURS; i++) {
        const unsigned place = threadIdx.x + i * THREADS;
        const unsigned outer = deep ? place / (DEPTH / 4) : place % (SIZE / 4) * 4;
        const unsigned depth = deep ? place % (DEPTH / 4) * 4 : place / (SIZE / 4);
        four[i] = reader.load4(first + outer, step + depth, deep);
      }
    }

    __device__ __forceinline__ void put(bool deep, float (&tile)[DEPTH][SIZE + PAD]) const {
#pragma unroll
      for (unsigned i = 0; i < FOURS; i++) {
        const unsigned place = threadIdx.x + i * THREADS;
        if (deep) {
          const unsigned outer = place / (DEPTH / 4), depth = place % (DEPTH / 4) * 4;
#pragma unroll
          for (unsigned j = 0; j < 4; j++) tile[depth + j][outer] = four[i].v[j];
        } else {
          *reinterpret_cast<Four<float>*>(&tile[place / (SIZE / 4)][place % (SIZE / 4) * 4]) = four[i];
        }
      }
    }
  };

  // The first of the four columns that all of this thread's fours are of, when b is not read along the depth.
  static __device__ __forceinline__ unsigned own_column() { return threadIdx.x % (COLUMNS / 4) * 4; }

  // sums += tile of a times tile of b, over those depths.
  template <class A, class B>
  static __device__ __forceinline__ void multiply(const A& a, const B& b, unsigned first_row, unsigned first_column,
                                                  Depths depths, Sums& sums) {
    using TileA = float[2][DEPTH][ROWS + PAD];
    using TileB = float[2][DEPTH][COLUMNS + PAD];
    ROTA_SHARED(TileA, tile_a);
    ROTA_SHARED(TileB, tile_b);
    const unsigned within = threadIdx.x % SLICE, first_depth = threadIdx.x / SLICE * (DEPTH / SLICES);
    const unsigned row = within / THREADS_X * ROWS_EACH, column = within % THREADS_X * COLUMNS_EACH;

    Share<ROWS> share_a;
    Share<COLUMNS> share_b;
    share_a.fetch(a, first_row, depths.begin);
    share_b.fetch(b, first_column, depths.begin);
    share_a.put(a.along_depth(), tile_a[0]);
    share_b.put(b.along_depth(), tile_b[0]);
    __syncthreads();

    unsigned now = 0;
    for (unsigned step = depths.begin; step < depths.end; step += DEPTH) {
      const bool more = step + DEPTH < depths.end;
      if (more) {
        share_a.fetch(a, first_row, step + DEPTH);
        share_b.fetch(b, first_column, step + DEPTH);
      }
      // Unrolled further, the fragments of several depths at once no longer fit the registers.
#pragma unroll 4
      for (unsigned i = 0; i < DEPTH / SLICES; i++) {
        const unsigned d = first_depth + i;
        float left[ROWS_EACH], right[COLUMNS_EACH];
#pragma unroll
        for (unsigned r = 0; r < ROWS_EACH; r++) left[r] = tile_a[now][d][row + r];
#pragma unroll
        for (unsigned c = 0; c < COLUMNS_EACH; c++) right[c] = tile_b[now][d][column + c];
#pragma unroll
        for (unsigned r = 0; r < ROWS_EACH; r++) {
#pragma unroll
          for (unsigned c = 0; c < COLUMNS_EACH; c++) sums[r][c] = fmaf(left[r], right[c], sums[r][c]);
        }
      }
      if (more) {
        share_a.put(a.along_depth(), tile_a[now ^ 1]);
        share_b.put(b.along_depth(), tile_b[now ^ 1]);
      }
      __syncthreads();
      now ^= 1;
    }
  }

  // Hands every sum to `keep(row, column, sum)`, both within the tile. A band of rows at a time goes through shared memory, so that
  // a warp stores neighbouring columns, and what `keep` does is compiled once per band and not once per sum.
  template <class Keep>
  static __device__ __forceinline__ void store(const Sums& sums, const Keep& keep) {
    using Band = float[SLICES][THREADS_Y][COLUMNS + PAD];
    ROTA_SHARED(Band, band);
    const unsigned slice = threadIdx.x / SLICE, within = threadIdx.x % SLICE;
    const unsigned line = within / THREADS_X, column = within % THREADS_X * COLUMNS_EACH;
#pragma unroll
    for (unsigned r = 0; r < ROWS_EACH; r++) {
#pragma unroll
      for (unsigned c = 0; c < COLUMNS_EACH; c++) band[slice][line][column + c] = sums[r][c];
      __syncthreads();
#pragma unroll 1
      for (unsigned place = threadIdx.x; place < THREADS_Y * COLUMNS; place += THREADS) {
        const unsigned y = place / COLUMNS, x = place % COLUMNS;
        float sum = band[0][y][x];
#pragma unroll
        for (unsigned other = 1; other < SLICES; other++) sum += band[other][y][x];
        keep(y * ROWS_EACH + r, x, sum);
      }
      __syncthreads();
    }
  }
};

}  // namespace
