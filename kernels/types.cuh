// types.cuh: the element types that a kernel is instantiated for; arithmetic is in f32 for all of them.
#pragma once

#include "rota.cuh"

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

// Four neighbours, loaded or stored at once.
template <class T>
struct alignas(4 * sizeof(T)) Four { T v[4]; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

// Round to nearest, ties to even; a NaN stays one.
__device__ __forceinline__ uint16_t bf16_bits(float x) {
  unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#ifdef ROTA_HOST
__device__ inline float to_float(f16 x) { return rota_host::half_to_float(x.bits); }
__device__ inline uint16_t f16_bits(float x) { return rota_host::float_to_half(x); }
#else
__device__ __forceinline__ float to_float(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ __forceinline__ uint16_t f16_bits(float x) {
  uint16_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#endif

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) { return f16{f16_bits(x)}; }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) { return bf16{bf16_bits(x)}; }
