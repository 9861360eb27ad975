// gemm.cuh: a batched matrix product, whatever multiplies its tiles.
#pragma once

#include "epilogue.cuh"
#include "readers.cuh"

template <class Tile>
__device__ __forceinline__ void gemm(const GemmParams& p) {
  using T = typename Tile::Element;
  const unsigned tiles_across = (p.columns + Tile::COLUMNS - 1) / Tile::COLUMNS;
  const unsigned first_row = blockIdx.x / tiles_across * Tile::ROWS, first_column = blockIdx.x % tiles_across * Tile::COLUMNS;
  const unsigned batches = p.batch_outer * p.batch_inner;

  for (unsigned batch = blockIdx.y; batch < batches; batch += gridDim.y) {
    const size_t outer = batch / p.batch_inner, inner = batch % p.batch_inner;
    const T* a = at<const T>(p.a) + outer * p.a_outer + inner * p.a_inner;
    const T* b = at<const T>(p.b) + outer * p.b_outer + inner * p.b_inner;
    const size_t shift = outer * p.c_outer + inner * p.c_inner;

    typename Tile::Sums sums = {};
    Tile::multiply(Strided<T>{a, p.rows, p.depth, p.a_row, p.a_depth, p.a_vector != 0},
                   Strided<T>{b, p.columns, p.depth, p.b_column, p.b_depth, p.b_vector != 0}, first_row, first_column,
                   p.depth, sums);
    Tile::store(sums, [&](unsigned tile_row, unsigned tile_column, float sum) {
      const size_t row = first_row + tile_row, column = first_column + tile_column;
      if (row >= p.rows || column >= p.columns) return;
      const size_t place = shift + row * p.c_row + column;
      const T* bias = p.bias ? at<const T>(p.bias) + row * p.epilogue.bias_row + column * p.epilogue.bias_column : nullptr;
      const T* residual = p.residual ? at<const T>(p.residual) + place : nullptr;
      at<T>(p.c)[place] = from_float<T>(finish(p.epilogue, sum, bias, residual));
    });
  }
}
