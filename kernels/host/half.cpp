// half.cpp: IEEE 754 binary16 to binary32 and back, round to nearest, ties to even; by the processor where it can.
#include "cuda_host.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace rota_host {

float half_to_float(uint16_t bits) {
#ifdef __F16C__
  return _cvtsh_ss(bits);
#else
  const unsigned sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float value = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal or zero
  return sign ? -value : value;
#endif
}

uint16_t float_to_half(float value) {
#ifdef __F16C__
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return sign | 0x7fff;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {                       // below 2^-14: adding 0.5 rounds at the last subnormal bit
    const float shifted = __uint_as_float(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(__float_as_uint(shifted) - 0x3f000000u);
  }
  return sign | static_cast<uint16_t>((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
#endif
}

}  // namespace rota_host
