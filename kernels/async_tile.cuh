// async_tile.cuh: as mma_tile.cuh, for operands that can be copied to shared memory as they are, 16 bytes at a time (copies.cuh).
//
// STAGES steps of the depth are in shared memory or on their way there: while one is multiplied, the copies of the next STAGES - 1 run, with no
// registers between, so that a block alone hides most of the memory's latency. One barrier per step: it says that all threads' copies of this step
// have landed, and that the stage of the last step is free for new ones.
// An operand keeps the layout that it has in memory. "Along": a row (or column) of the tile is 16 words of depth. "Across": a depth is the tile's
// columns side by side; of 16-bit elements the fragments are transposed as they are loaded. Rows of both are padded by 16 bytes, tf32's across by
// 32, so that fragments hit each bank once. a is always along: the catalogue sends others to mma_tile.cuh.
#pragma once

#include "copies.cuh"
#include "mma_tile.cuh"

namespace {

template <class Math, unsigned WARPS_Y, unsigned WARPS_X, unsigned STAGES>
struct AsyncTile : MmaTile<Math, WARPS_Y, WARPS_X> {
  using Base = MmaTile<Math, WARPS_Y, WARPS_X>;
  using Base::SIDE, Base::ROWS, Base::COLUMNS, Base::THREADS, Base::WORDS, Base::DEPTH;
  using typename Base::Element, typename Base::Sums;

  static constexpr unsigned PER_COPY = 16 / sizeof(Element);
  static constexpr unsigned ALONG = WORDS + 4;     // words from row to row
  static constexpr unsigned ACROSS = COLUMNS + 8;  // elements from depth to depth
  static constexpr unsigned WORDS_A = ROWS * ALONG, WORDS_B = COLUMNS * ALONG;  // of a stage
  static_assert(DEPTH * ACROSS / Math::PER_WORD <= WORDS_B, "b's stage holds either layout");
  static_assert(ROWS * 4 % THREADS == 0 && COLUMNS * 4 % THREADS == 0, "each thread has whole copies");

  using Memory = uint32_t[STAGES * (WORDS_A + WORDS_B)];
  static_assert(sizeof(Memory) >= sizeof(typename Base::Band), "the sums leave through the same memory");

  static __device__ __forceinline__ Memory& memory() {
    ROTA_SHARED(Memory, words);
    return words;
  }
  static __device__ __forceinline__ uint32_t* stage(unsigned step) { return memory() + step % STAGES * (WORDS_A + WORDS_B); }

  // SIZE rows of 16 words of depth.
  template <unsigned SIZE, class Reader>
  static __device__ __forceinline__ void copy_along(const Reader& reader, unsigned first, unsigned depth, uint32_t* tile) {
#pragma unroll
    for (unsigned i = 0; i < SIZE * 4 / THREADS; i++) {
      const unsigned place = threadIdx.x + i * THREADS, row = place / 4, chunk = place % 4;
      const unsigned outer = first + row, at = depth + chunk * PER_COPY;
      const bool inside = reader.inside(outer, at);
      begin_copy(tile + row * ALONG + chunk * 4, inside ? reader.place(outer, at) : reader.base, inside);
    }
  }

  // DEPTH depths of COLUMNS columns.
  template <class Reader>
  static __device__ __forceinline__ void copy_across(const Reader& reader, unsigned first, unsigned depth, uint32_t* tile) {
    constexpr unsigned CHUNKS = COLUMNS / PER_COPY;
#pragma unroll
    for (unsigned i = 0; i < DEPTH * CHUNKS / THREADS; i++) {
      const unsigned place = threadIdx.x + i * THREADS, row = place / CHUNKS, chunk = place % CHUNKS;
      const unsigned outer = first + chunk * PER_COPY, at = depth + row;
      const bool inside = reader.inside(outer, at);
      begin_copy(tile + (row * ACROSS + chunk * PER_COPY) / Math::PER_WORD, inside ? reader.place(outer, at) : reader.base, inside);
    }
  }

  // b's fragments of 32 columns at words `w` to `w` + 7 of the depth.
  template <bool B_ALONG>
  static __device__ __forceinline__ void load_b(const uint32_t* tile, unsigned w, uint32_t (&b)[4][2]) {
    const unsigned lane = threadIdx.x % WARP, column = Base::warp_x() * SIDE;
    if constexpr (!B_ALONG && Math::PER_WORD == 1) {
#pragma unroll
      for (unsigned x = 0; x < 4; x++) {
#pragma unroll
        for (unsigned i = 0; i < 2; i++) b[x][i] = tile[(w + lane % 4 + i * 4) * ACROSS + column + x * 8 + lane / 4];
      }
    } else {
#pragma unroll
      for (unsigned x = 0; x < 4; x += 2) {
        uint32_t four[4];
        if constexpr (B_ALONG) {
          load_matrices(four, tile + (column + x * 8 + lane % 8 + lane / 16 * 8) * ALONG + w + lane / 8 % 2 * 4);
        } else {
          load_matrices_transposed(four, tile + ((w * 2 + lane % 16) * ACROSS + column + x * 8 + lane / 16 * 8) / 2);
        }
#pragma unroll
        for (unsigned i = 0; i < 4; i++) b[x + i / 2][i % 2] = four[i];
      }
    }
  }

  template <bool B_ALONG>
  static __device__ __forceinline__ void multiply_step(const uint32_t* tile, Sums& sums) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned w = 0; w < WORDS; w += 8) {
      uint32_t a[2][4], b[4][2];
#pragma unroll
      for (unsigned y = 0; y < 2; y++) {
        load_matrices(a[y], tile + (Base::warp_y() * SIDE + y * 16 + lane % 16) * ALONG + w + lane / 16 * 4);
#pragma unroll
        for (unsigned i = 0; i < 4; i++) a[y][i] = Math::operand(a[y][i]);
      }
      load_b<B_ALONG>(tile + WORDS_A, w, b);
#pragma unroll
      for (unsigned x = 0; x < 4; x++) {
#pragma unroll
        for (unsigned i = 0; i < 2; i++) b[x][i] = Math::operand(b[x][i]);
#pragma unroll
        for (unsigned y = 0; y < 2; y++) Math::mma(sums[y][x], a[y], b[x]);
      }
    }
  }

  template <class A, class B>
  static __device__ __forceinline__ void multiply(const A& a, const B& b, unsigned first_row, unsigned first_column,
                                                  Depths depths, Sums& sums) {
    const unsigned steps = (depths.end - depths.begin + DEPTH - 1) / DEPTH;
    const auto begin = [&](unsigned step) {
      if (step < steps) {
        const unsigned depth = depths.begin + step * DEPTH;
        copy_along<ROWS>(a, first_row, depth, stage(step));
        if (b.along_depth()) copy_along<COLUMNS>(b, first_column, depth, stage(step) + WORDS_A);
        else copy_across(b, first_column, depth, stage(step) + WORDS_A);
      }
      close_copies();  // also where there are none, so that groups count steps
    };
#pragma unroll
    for (unsigned step = 0; step < STAGES - 1; step++) begin(step);
    for (unsigned step = 0; step < steps; step++) {
      wait_for_copies<STAGES - 2>();
      __syncthreads();
      begin(step + STAGES - 1);
      if (b.along_depth()) multiply_step<true>(stage(step), sums);
      else multiply_step<false>(stage(step), sums);
    }
    wait_for_copies<0>();
    __syncthreads();  // the stages are free
  }

  template <class Keep>
  static __device__ __forceinline__ void store(const Sums& sums, const Keep& keep) {
    Base::store_through(*reinterpret_cast<typename Base::Band*>(memory()), sums, keep);
  }
};

}  // namespace
