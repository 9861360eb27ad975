// mma_tile.cuh: one block's tile of a matrix product on tensor cores, f32 sums of f16, bf16 or tf32 products.
//
// Both operands lie in shared memory as 32-bit words, [depth][row or column]: a tf32 number, or two 16-bit numbers that are neighbours along the
// depth. In these words the fragments of mma.m16n8k8 (tf32) and mma.m16n8k16 (16 bits) are the same, so one tile
// serves all three. Rows of words are 8 mod 32 words apart, so a warp's fragment loads hit each bank once.
// A warp has 32 x 32 sums. Loads of the next step are in flight in registers while one is multiplied, as in simt_tile.cuh.
#pragma once

#include "mma.cuh"
#include "readers.cuh"

// Of each file its own: one tile in two files would be one place in shared memory for the kernels of both, and room lost around it.
namespace {

template <class Math, unsigned WARPS_Y, unsigned WARPS_X>
struct MmaTile {
  static constexpr unsigned SIDE = 32;  // of a warp's part
  static constexpr unsigned ROWS = SIDE * WARPS_Y, COLUMNS = SIDE * WARPS_X, THREADS = WARP * WARPS_Y * WARPS_X;
  static constexpr unsigned WORDS = 16, PAD = 8;  // words along the depth of a step
  static constexpr unsigned DEPTH = WORDS * Math::PER_WORD;
  using Sums = float[2][4][4];  // of 16 x 8: [down][across][as mma has them]
  using Element = typename Math::Element;

  // A thread's share of one operand's step: units of four words, each out of PER_WORD fours.
  template <unsigned SIZE>
  struct Share {
    static constexpr unsigned UNITS = SIZE * WORDS / 4 / THREADS;
    static_assert(SIZE * WORDS % (4 * THREADS) == 0, "each thread has whole units");
    static_assert(THREADS % (SIZE / 4) == 0, "a thread's units across the depth are of the same rows or columns");
    Four<uint32_t> unit[UNITS];

    template <class Reader>
    __device__ __forceinline__ void fetch(const Reader& reader, unsigned first, unsigned step) {
      const bool deep = reader.along_depth();
#pragma unroll
      for (unsigned i = 0; i < UNITS; i++) {
        const unsigned place = threadIdx.x + i * THREADS;
        Four<float> four[Math::PER_WORD];
#pragma unroll
        for (unsigned part = 0; part < Math::PER_WORD; part++) {
          const unsigned outer = deep ? place / (WORDS / 4) : place % (SIZE / 4) * 4;
          const unsigned depth = deep ? place % (WORDS / 4) * 4 * Math::PER_WORD + part * 4
                                      : place / (SIZE / 4) * Math::PER_WORD + part;
          four[part] = reader.load4(first + outer, step + depth, deep);
        }
        unit[i] = deep ? Math::pack_along(four) : Math::pack_across(four);
      }
    }

    __device__ __forceinline__ void put(bool deep, uint32_t (&tile)[WORDS][SIZE + PAD]) const {
#pragma unroll
      for (unsigned i = 0; i < UNITS; i++) {
        const unsigned place = threadIdx.x + i * THREADS;
        if (deep) {
          const unsigned outer = place / (WORDS / 4), word = place % (WORDS / 4) * 4;
#pragma unroll
          for (unsigned j = 0; j < 4; j++) tile[word + j][outer] = unit[i].v[j];
        } else {
          *reinterpret_cast<Four<uint32_t>*>(&tile[place / (SIZE / 4)][place % (SIZE / 4) * 4]) = unit[i];
        }
      }
    }
  };

  static __device__ __forceinline__ unsigned own_column() { return threadIdx.x % (COLUMNS / 4) * 4; }
  static __device__ __forceinline__ unsigned warp_y() { return threadIdx.x / WARP / WARPS_X; }
  static __device__ __forceinline__ unsigned warp_x() { return threadIdx.x / WARP % WARPS_X; }

  // One step out of shared memory.
  static __device__ __forceinline__ void multiply_step(const uint32_t (&tile_a)[WORDS][ROWS + PAD],
                                                       const uint32_t (&tile_b)[WORDS][COLUMNS + PAD], Sums& sums) {
    const unsigned lane = threadIdx.x % WARP, group = lane / 4, word = lane % 4;  // as mma numbers them
    const unsigned row = warp_y() * SIDE + group, column = warp_x() * SIDE + group;
#pragma unroll
    for (unsigned w = 0; w < WORDS; w += 8) {
      uint32_t a[2][4], b[4][2];
#pragma unroll
      for (unsigned y = 0; y < 2; y++) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) a[y][i] = tile_a[w + word + i / 2 * 4][row + y * 16 + i % 2 * 8];
      }
#pragma unroll
      for (unsigned x = 0; x < 4; x++) {
#pragma unroll
        for (unsigned i = 0; i < 2; i++) b[x][i] = tile_b[w + word + i * 4][column + x * 8];
      }
#pragma unroll
      for (unsigned y = 0; y < 2; y++) {
#pragma unroll
        for (unsigned x = 0; x < 4; x++) Math::mma(sums[y][x], a[y], b[x]);
      }
    }
  }

  template <class A, class B>
  static __device__ __forceinline__ void multiply(const A& a, const B& b, unsigned first_row, unsigned first_column,
                                                  Depths depths, Sums& sums) {
    using TileA = uint32_t[2][WORDS][ROWS + PAD];
    using TileB = uint32_t[2][WORDS][COLUMNS + PAD];
    ROTA_SHARED(TileA, tile_a);
    ROTA_SHARED(TileB, tile_b);
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
      multiply_step(tile_a[now], tile_b[now], sums);
      if (more) {
        share_a.put(a.along_depth(), tile_a[now ^ 1]);
        share_b.put(b.along_depth(), tile_b[now ^ 1]);
      }
      __syncthreads();
      now ^= 1;
    }
  }

  // As SimtTile::store; a band is 16 rows of every row of warps.
  template <class Keep>
  static __device__ __forceinline__ void store(const Sums& sums, const Keep& keep) {
    ROTA_SHARED(Band, band);
    store_through(band, sums, keep);
  }

  using Band = float[16 * WARPS_Y][COLUMNS + PAD];

  template <class Keep>
  static __device__ __forceinline__ void store_through(Band& band, const Sums& sums, const Keep& keep) {
    const unsigned lane = threadIdx.x % WARP;
    const unsigned row = warp_y() * 16 + lane / 4, column = warp_x() * SIDE + lane % 4 * 2;
#pragma unroll
    for (unsigned y = 0; y < 2; y++) {
#pragma unroll
      for (unsigned x = 0; x < 4; x++) {
#pragma unroll
        for (unsigned i = 0; i < 4; i++) band[row + i / 2 * 8][column + x * 8 + i % 2] = sums[y][x][i];
      }
      __syncthreads();
#pragma unroll 1
      for (unsigned place = threadIdx.x; place < 16 * WARPS_Y * COLUMNS; place += THREADS) {
        const unsigned line = place / COLUMNS, across = place % COLUMNS;
        keep(line / 16 * SIDE + y * 16 + line % 16, across, band[line][across]);
      }
      __syncthreads();
    }
  }
};

}  // namespace
