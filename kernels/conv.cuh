// conv.cuh: a convolution as an implicit matrix product, whatever multiplies its tiles.
//
// NCHW: rows are a group's filters, columns the output pixels of all pictures, the depth runs over (channel, ky, kx). NHWC: rows are the
// pixels, columns the filters, the depth runs over (ky, kx, channel); so a warp stores what lies side by side in either. The operand with the
// pixels is never stored: each thread reads those that it needs and finds zero in the padding.
#pragma once

#include "epilogue.cuh"
#include "readers.cuh"

template <class Tile>
__device__ __forceinline__ void conv(const ConvParams& p) {
  using T = typename Tile::Element;
  const unsigned tiles_across = (p.images * p.out_height * p.out_width + Tile::COLUMNS - 1) / Tile::COLUMNS;
  const unsigned first_row = blockIdx.x / tiles_across * Tile::ROWS, first_column = blockIdx.x % tiles_across * Tile::COLUMNS;
  const unsigned depth = p.group_channels * p.kernel_height * p.kernel_width;

  const unsigned group = blockIdx.y;
  const T* w = at<const T>(p.w) + static_cast<size_t>(group) * p.group_filters * depth;
  typename Tile::Sums sums = {};
  Tile::multiply(Strided<T>{w, p.group_filters, depth, depth, 1, p.w_vector != 0},
                 Patches<T>(p, group, first_column + Tile::own_column()), first_row, first_column,
                 own_depths(depth, p.split_depth), sums);
  Tile::store(sums, [&](unsigned tile_row, unsigned tile_column, float sum) {
    // Worked out again: while tiles are multiplied there is no register to keep it in.
    const unsigned pixels = p.out_height * p.out_width, columns = p.images * pixels;
    const unsigned row = first_row + tile_row, column = first_column + tile_column;
    if (row >= p.group_filters || column >= columns) return;
    const unsigned filter = group * p.group_filters + row;
    if (p.partial) {
      at<float>(p.partial)[(static_cast<size_t>(blockIdx.z) * p.filters + filter) * columns + column] = sum;
      return;
    }
    const unsigned image = divide(column, p.by_out_pixels), pixel = column - image * pixels;
    const size_t place = (static_cast<size_t>(image) * p.filters + filter) * pixels + pixel;
    const float* bias = p.bias ? at<const float>(p.bias) + filter : nullptr;
    const T* residual = p.residual ? at<const T>(p.residual) + place : nullptr;
    at<T>(p.y)[place] = from_float<T>(finish(p.epilogue, sum, bias, residual));
  });
}

// Writes NHWC, from a picture of either layout; weights are [filters, kh, kw, channels / groups].
template <class Tile>
__device__ __forceinline__ void conv_last(const ConvParams& p) {
  using T = typename Tile::Element;
  const unsigned pixels = p.images * p.out_height * p.out_width;
  const unsigned tiles_across = (p.group_filters + Tile::COLUMNS - 1) / Tile::COLUMNS;
  const unsigned first_row = blockIdx.x / tiles_across * Tile::ROWS, first_column = blockIdx.x % tiles_across * Tile::COLUMNS;
  const unsigned depth = p.group_channels * p.kernel_height * p.kernel_width;

  const unsigned group = blockIdx.y;
  const T* w = at<const T>(p.w) + static_cast<size_t>(group) * p.group_filters * depth;
  typename Tile::Sums sums = {};
  Tile::multiply(PatchesLast<T>(p, group), Strided<T>{w, p.group_filters, depth, depth, 1, p.w_vector != 0}, first_row,
                 first_column, own_depths(depth, p.split_depth), sums);
  Tile::store(sums, [&](unsigned tile_row, unsigned tile_column, float sum) {
    const unsigned pixel = first_row + tile_row, column = first_column + tile_column;
    if (pixel >= pixels || column >= p.group_filters) return;
    const unsigned filter = group * p.group_filters + column;
    const size_t place = static_cast<size_t>(pixel) * p.filters + filter;
    if (p.partial) {
      at<float>(p.partial)[static_cast<size_t>(blockIdx.z) * pixels * p.filters + place] = sum;
      return;
    }
    const float* bias = p.bias ? at<const float>(p.bias) + filter : nullptr;
    const T* residual = p.residual ? at<const T>(p.residual) + place : nullptr;
    at<T>(p.y)[place] = from_float<T>(finish(p.epilogue, sum, bias, residual));
  });
}
