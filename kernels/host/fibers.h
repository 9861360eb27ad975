// fibers.h: runs the blocks of a kernel, each as fibers on one thread of the host.
#pragma once

#include "cuda_host.h"

#include <string>
#include <vector>

namespace rota_host {

enum class Order : uint32_t { Forward = 0, Reversed = 1, Random = 2, Any = 3 };

// xorshift64*: orders of turns only have to differ and to be repeatable.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u | 1) {}
  uint64_t next() {
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 0x2545f4914f6cdd1du;
  }
};

struct Grid {
  uint3 grid, block;
  uint32_t shared_bytes;
  Body body;
  const void* params;
  Order order;
  uint64_t seed;
};

// Runs all blocks: one after the other on this thread, or, in `Order::Any`, several at once on the host's cores. Empty when that went well,
// else what was wrong with the first block that failed, by its number: the same one however many threads there are.
std::string run(const Grid& grid);

// What a block's shared memory looks like while it runs: each declaration's range, in the order of their first use.
struct SharedRange {
  const void* declaration;
  unsigned char* start;
  size_t bytes;
};

// What a thread has begun to copy, and how many groups it has closed.
struct Copies {
  struct Copy { void* target; const void* source; unsigned group; };
  std::vector<Copy> under_way;
  unsigned closed = 0;
};

// The machine that this thread of the host is; grown once, then reused by all launches.
struct Machine {
  std::vector<Thread> threads;
  std::vector<Copies> copies;         // by thread
  std::vector<unsigned char> shared;  // all of a block's shared memory, with a gap behind each range
  std::vector<SharedRange> ranges;
  size_t shared_used = 0;
  unsigned arrived = 0, left = 0, barrier_line = 0;  // at the block's barrier; ended; where the first arrived
  struct Warp { unsigned arrived, left, lanes, line, barriers; };
  std::vector<Warp> warps;
  unsigned barriers = 0;    // that blocks have passed in this launch
  unsigned grid_block = 0;  // the block's number in the grid
  void* scheduler = nullptr;
  Body body = nullptr;
  const void* params = nullptr;
  uint64_t seed = 0;
  std::string error;
  ~Machine();
};

extern thread_local Machine machine;

// What went wrong; the launch ends with the first such error.
void fail(std::string error);
// Gives up the turn of a fiber that has failed; it is never resumed.
void stop();

#ifdef ROTA_CHECK
// check.cpp: told when a block begins, so that it forgets what shared memory held.
void check_block();
// And of copies: the target is nobody's from their begin until they land.
void check_copy_begins(void* target);
void check_copy_lands(void* target, const void* source);
#else
inline void check_block() {}
inline void check_copy_begins(void*) {}
inline void check_copy_lands(void*, const void*) {}
#endif

constexpr size_t SHARED_MAX = 228 * 1024;  // more than any architecture has for one block
constexpr size_t SHARED_GAP = 64;          // between two ranges, so that running past one's end is seen
constexpr size_t STACK_BYTES = 64 * 1024;

}  // namespace rota_host
