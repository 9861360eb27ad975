// cuda_host.h: CUDA's words for g++, so that kernels compile and run on a CPU, each thread of a block a fiber.
//
// A block's fibers share one thread of the host and switch at barriers and warp operations only. What the GPU leaves undefined is an error here:
// a barrier that not all threads of a block reach, or that they reach at different lines, and a warp operation without all of its lanes.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))

struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

namespace rota_host {

// What a lane shows to the others of its warp.
struct alignas(16) Slot { unsigned char bytes[64]; };

// A fiber's own state; `slots` alternate, so that a lane may publish its next value while others still read the last.
struct Thread {
  void* stack_pointer;
  unsigned char* stack;
  uint3 index;
  unsigned linear, state, line, parity;
  Slot slots[2];
};

// The block that this thread of the host runs, and the fiber whose turn it is.
struct Running {
  Thread* current;
  Thread* threads;
  uint3 block_index;
  uint3 block_size, grid_size;
  unsigned count;
};

extern __thread Running running __attribute__((tls_model("initial-exec")));

void block_barrier(unsigned line);
// All lanes of a warp have to come. Only __syncwarp orders their accesses to memory; an exchange of registers does not.
void warp_barrier(unsigned line, bool orders_memory);
// The block's memory for one declaration of shared memory; the same for all of its threads.
void* shared_memory(const void* declaration, size_t bytes);

// 16 bytes from `source`, or zeros for null, which land in shared memory when the thread waits for them, and not before.
void begin_copy(void* target, const void* source);
void close_copies();
// Until at most so many groups that were closed are under way.
void wait_for_copies(unsigned groups);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

using Body = void (*)(const void* params);
// Adds a kernel to the library; lives as long as it.
struct Entry { Entry(const char* name, size_t params_bytes, unsigned threads_max, Body body); };

// Shows `value` to the warp and waits for all lanes to show theirs; then `lane(i)` is what lane i showed.
template <class T>
struct Shown {
  const Thread* first;
  unsigned parity;
  T lane(unsigned index) const {
    T value;
    memcpy(&value, first[index].slots[parity].bytes, sizeof value);
    return value;
  }
  // In place, until the next but one exchange.
  const T& peek(unsigned index) const { return *reinterpret_cast<const T*>(first[index].slots[parity].bytes); }
};

template <class T>
inline Shown<T> show(const T& value, unsigned line) {
  static_assert(sizeof(T) <= sizeof(Slot), "a slot holds what a lane shows");
  Thread* me = running.current;
  const unsigned parity = me->parity;
  me->parity ^= 1;
  memcpy(me->slots[parity].bytes, &value, sizeof value);
  warp_barrier(line, false);
  return {running.threads + me->linear / 32 * 32, parity};
}

inline unsigned lane() { return running.current->linear % 32; }

}  // namespace rota_host

#define ROTA_KERNEL(name, Params, threads, blocks)                                                     \
  static void name(const Params& p);                                                                   \
  static const rota_host::Entry name##_entry(#name, sizeof(Params), threads, [](const void* params) {  \
    name(*static_cast<const Params*>(params));                                                         \
  });                                                                                                  \
  static void name(const Params& p)

#define ROTA_SHARED(type, name)             \
  static const char name##_declaration = 0; \
  type& name = *static_cast<std::remove_reference_t<type>*>(rota_host::shared_memory(&name##_declaration, sizeof(type)))

#define threadIdx (rota_host::running.current->index)
#define blockIdx (rota_host::running.block_index)
#define blockDim (rota_host::running.block_size)
#define gridDim (rota_host::running.grid_size)
#define __syncthreads() rota_host::block_barrier(__LINE__)

inline void __syncwarp(unsigned = 0xffffffffu, unsigned line = __builtin_LINE()) { rota_host::warp_barrier(line, true); }

template <class T>
inline T __shfl_xor_sync(unsigned, T value, unsigned mask, unsigned line = __builtin_LINE()) {
  return rota_host::show(value, line).lane(rota_host::lane() ^ mask);
}
template <class T>
inline T __shfl_sync(unsigned, T value, unsigned source, unsigned line = __builtin_LINE()) {
  return rota_host::show(value, line).lane(source % 32);
}
template <class T>
inline T __shfl_down_sync(unsigned, T value, unsigned offset, unsigned line = __builtin_LINE()) {
  const unsigned from = rota_host::lane() + offset;
  return rota_host::show(value, line).lane(from < 32 ? from : rota_host::lane());
}

inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
inline float sinpif(float x) { return static_cast<float>(sin(3.14159265358979323846 * x)); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline unsigned atomicOr(unsigned* word, unsigned bits) { return __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
