// readers.cuh: how a tile of a matrix product reads its operands, four neighbouring elements at a time.
//
// A reader has `along_depth()`: whether neighbours in memory are neighbours along the depth; and `load4(outer, depth, deep)`: elements
// (outer, depth) to (outer, depth + 3) when deep, else (outer, depth) to (outer + 3, depth); zero outside of the matrix.
#pragma once

#include "divide.cuh"
#include "types.cuh"

// The steps of the depth that a block multiplies.
struct Depths { unsigned begin, end; };

// All of them, or the part that is blockIdx.z's.
__device__ __forceinline__ Depths own_depths(unsigned depth, unsigned split_depth) {
  const unsigned begin = blockIdx.z * split_depth;
  return {begin, min(depth, begin + split_depth)};
}

// Element (outer, depth) at base + outer * outer_stride + depth * depth_stride.
// `vector`: one of the strides is 1, and fours along it are aligned and end with the matrix.
template <class T>
struct Strided {
  const T* base;
  unsigned outers, depths, outer_stride, depth_stride;
  bool vector;

  __device__ __forceinline__ bool along_depth() const { return depth_stride == 1; }

  __device__ __forceinline__ bool inside(unsigned outer, unsigned depth) const { return outer < outers && depth < depths; }
  __device__ __forceinline__ const T* place(unsigned outer, unsigned depth) const {
    return base + static_cast<size_t>(outer) * outer_stride + static_cast<size_t>(depth) * depth_stride;
  }

  __device__ __forceinline__ float load(unsigned outer, unsigned depth) const {
    if (outer >= outers || depth >= depths) return 0.0f;
    return to_float(base[static_cast<size_t>(outer) * outer_stride + static_cast<size_t>(depth) * depth_stride]);
  }

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
};

// The pixels under a convolution's kernel: outer is an output pixel of any picture, depth runs over (channel, ky, kx).
// All fours of a thread are of the same four pixels, whose windows are found once.
template <class T>
struct Patches {
  const ConvParams& p;
  const T* x;
  unsigned start[4];  // where the group's first channel of the pixel's picture begins
  int top[4], left[4];

  // `first` is the first of the thread's pixels.
  __device__ __forceinline__ Patches(const ConvParams& params, unsigned group, unsigned first)
      : p(params), x(at<const T>(params.x)) {
    const unsigned pixels = p.out_height * p.out_width;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
      const unsigned image = divide(first + i, p.by_out_pixels), pixel = first + i - image * pixels;
      const unsigned oy = divide(pixel, p.by_out_width), ox = pixel - oy * p.out_width;
      start[i] = (image * p.channels + group * p.group_channels) * p.height * p.width;
      // A pixel past the last picture lies above every picture, so that it reads zeros.
      top[i] = image < p.images ? static_cast<int>(oy * p.stride_y) - p.pad_top : -(1 << 28);
      left[i] = static_cast<int>(ox * p.stride_x) - p.pad_left;
    }
  }

  __device__ __forceinline__ constexpr bool along_depth() const { return false; }

  __device__ __forceinline__ Four<float> load4(unsigned, unsigned depth, bool) const {
    const unsigned area = p.kernel_height * p.kernel_width;
    const unsigned channel = divide(depth, p.by_kernel_area), tap = depth - channel * area;
    const unsigned ky = divide(tap, p.by_kernel_width), kx = tap - ky * p.kernel_width;
    const int dy = static_cast<int>(ky * p.dilation_y), dx = static_cast<int>(kx * p.dilation_x);
    const unsigned plane = channel * p.height * p.width;
    Four<float> out;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
      const unsigned iy = static_cast<unsigned>(top[i] + dy), ix = static_cast<unsigned>(left[i] + dx);
      const bool inside = channel < p.group_channels && iy < p.height && ix < p.width;  // negative ones are large
      out.v[i] = inside ? to_float(x[start[i] + plane + iy * p.width + ix]) : 0.0f;
    }
    return out;
  }
};
