// divide.cuh: division by a number that the host knows, as a multiplication and a shift.
#pragma once

#include "rota.cuh"

// n / d.divisor for n < 2^31.
__device__ __forceinline__ unsigned divide(unsigned n, const Divider& d) {
  return static_cast<unsigned>((static_cast<uint64_t>(n) * d.multiplier) >> (31 + d.shift));
}
