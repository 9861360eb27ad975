// batch.cu: puts a batch together out of many buffers, or takes its results apart; one launch whatever the batch is made of.
//
// The table of pieces and their number are read when the kernel runs, so that a recorded graph serves every batch. A piece may lie in a client's
// pinned memory; a source of 0 is zeros, for the places of a bucket that stay empty.
// Shapes  any number of pieces of any length at any address
// Tiling  256 threads; blockIdx.y strides over pieces, blockIdx.x over a piece; 16, 4 or 1 byte at a time, as the addresses allow
// Cost    twice the bytes moved: bound by memory, or by PCIe where a piece is pinned
// Roof    32 pictures of 600 KB over PCIe 5 x16 (64 GB/s) = 0.3 ms; not run on a GPU
// Test    tests/batch.rs: byte by byte
#include "rota.cuh"

// Bytes [done, bytes) in units of T, as far as whole ones go; returns where it stopped.
template <class T>
__device__ __forceinline__ uint64_t move_units(const MoveEntry& entry, uint64_t done, T nothing) {
  const uint64_t units = (entry.bytes - done) / sizeof(T);
  const T* source = at<const T>(entry.source + done);
  T* target = at<T>(entry.target + done);
  for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < units; i += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
    target[i] = entry.source ? source[i] : nothing;
  }
  return done + units * sizeof(T);
}

ROTA_KERNEL(rota_move, MoveParams, 256, 4) {
  const unsigned count = *at<const unsigned>(p.count);
  for (unsigned index = blockIdx.y; index < count; index += gridDim.y) {
    const MoveEntry entry = at<const MoveEntry>(p.entries)[index];
    const uint64_t together = entry.source | entry.target;
    uint64_t done = 0;
    if (together % 16 == 0) done = move_units(entry, done, uint4{0, 0, 0, 0});
    if (together % 4 == 0) done = move_units(entry, done, 0u);
    move_units(entry, done, static_cast<uint8_t>(0));
  }
}
