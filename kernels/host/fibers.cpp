// fibers.cpp: the turns of a block's fibers, barriers, shared memory, and a grid's blocks.
//
// A fiber gives up its turn only at a barrier or a warp operation, so everything between two of them runs undisturbed: data races do not
// show as torn values but as results that depend on the order of turns, which is why the order can be chosen (and why
// the checking build records accesses, see check.cpp).
#include "fibers.h"

#include "pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>

namespace rota_host {

__thread Running running;
thread_local Machine machine;

void fail(std::string error);

namespace {

enum State : unsigned { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, ENDED };

extern "C" void rota_host_switch(void** save, void* to);
// Saves what the ABI lets a callee keep, and continues on the other stack.
asm(R"(.text
.globl rota_host_switch
.hidden rota_host_switch
.type rota_host_switch,@function
rota_host_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size rota_host_switch,.-rota_host_switch)");

void yield() { rota_host_switch(&running.current->stack_pointer, machine.scheduler); }

Machine::Warp& my_warp() { return machine.warps[running.current->linear / 32]; }

void release_block() {
  machine.arrived = 0;
  machine.barriers++;
  for (unsigned i = 0; i < running.count; i++) running.threads[i].state = READY;
}

void release_warp(unsigned warp) {
  machine.warps[warp].arrived = 0;
  for (unsigned i = warp * 32; i < std::min(running.count, warp * 32 + 32); i++) running.threads[i].state = READY;
}

void begin() {
  machine.body(machine.params);
  running.current->state = ENDED;
  machine.left++;
  my_warp().left++;
  yield();
  abort();  // nobody resumes a fiber that has ended
}

std::string place(unsigned line, const char* what) {
  char text[200];
  snprintf(text, sizeof text, "%s in block (%u, %u, %u), line %u", what, running.block_index.x, running.block_index.y,
           running.block_index.z, line);
  return text;
}

// Offsets the stacks of neighbouring fibers, or their hot lines would all fall into the same sets of the cache.
constexpr size_t STACK_COLOUR_BYTES = 192, STACK_COLOURS_BYTES = 8192;

void prepare(Thread& thread, unsigned linear) {
  thread.linear = linear;
  thread.state = READY;
  thread.parity = 0;
  const uint3 size = running.block_size;
  thread.index = {linear % size.x, linear / size.x % size.y, linear / (size.x * size.y)};
  unsigned char* top = thread.stack + STACK_BYTES - 64 - linear * STACK_COLOUR_BYTES % STACK_COLOURS_BYTES;
  void** stack = reinterpret_cast<void**>(top);
  *--stack = nullptr;  // where begin() would return to, and what aligns its frame as the ABI wants
  *--stack = reinterpret_cast<void*>(begin);
  for (int saved = 0; saved < 6; saved++) *--stack = nullptr;
  thread.stack_pointer = stack;
}

bool grow(unsigned count) {
  while (machine.threads.size() < count) {
    Thread thread{};
    void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) return false;
    thread.stack = static_cast<unsigned char*>(stack);
    machine.threads.push_back(thread);
  }
  return true;
}

// Shared memory starts as garbage on a GPU; here it is bytes that make floats large and differ with the seed.
void fill_shared() {
  const unsigned char pattern = static_cast<unsigned char>(0x7d ^ (machine.seed & 0x81));
  memset(machine.shared.data(), pattern, std::min(machine.shared.size(), machine.shared_used + SHARED_GAP));
  machine.ranges.clear();
  machine.shared_used = 0;
}

void start_block(const Grid& grid, uint3 index) {
  running.block_index = index;
  machine.arrived = machine.left = 0;
  fill_shared();
  machine.warps.assign((running.count + 31) / 32, {});
  machine.copies.assign(running.count, {});
  for (unsigned i = 0; i < running.count; i++) {
    prepare(machine.threads[i], i);
    machine.warps[i / 32].lanes++;
  }
  machine.body = grid.body;
  machine.params = grid.params;
  check_block();
}

// Nobody can go on: says who waits for whom.
std::string stuck() {
  if (machine.arrived)
    return place(machine.barrier_line, machine.left ? "threads ended while others wait at __syncthreads" :
                                                      "not all threads reach __syncthreads");
  for (const Machine::Warp& warp : machine.warps)
    if (warp.arrived) return place(warp.line, "a warp operation lacks some of its lanes");
  return place(0, "no thread can go on");
}

std::string run_block(const Grid& grid, uint3 index, std::vector<unsigned>& turns, Random& random) {
  start_block(grid, index);
  while (machine.left < running.count) {
    if (grid.order == Order::Random)
      for (unsigned i = running.count; i > 1; i--) std::swap(turns[i - 1], turns[random.next() % i]);
    bool any = false;
    for (unsigned turn : turns) {
      Thread& thread = machine.threads[turn];
      if (thread.state != READY) continue;
      any = true;
      running.current = &thread;
      rota_host_switch(&machine.scheduler, thread.stack_pointer);
      if (!machine.error.empty()) return std::move(machine.error);
    }
    if (!any) return stuck();
  }
  return {};
}

}  // namespace

void fail(std::string error) {
  if (machine.error.empty()) machine.error = std::move(error);
}

void stop() { yield(); }

void block_barrier(unsigned line) {
  running.current->line = line;
  if (machine.arrived == 0) machine.barrier_line = line;
  if (machine.barrier_line != line) fail(place(line, "threads wait at different __syncthreads"));
  if (!machine.error.empty()) return yield();
  if (++machine.arrived == running.count) return release_block();
  running.current->state = AT_BLOCK_BARRIER;
  yield();
}

void warp_barrier(unsigned line, bool orders_memory) {
  Machine::Warp& warp = my_warp();
  running.current->line = line;
  if (warp.arrived == 0) warp.line = line;
  if (warp.line != line) fail(place(line, "lanes of a warp are at different warp operations"));
  if (warp.lanes != 32) fail(place(line, "a warp operation in a block that is no multiple of 32 threads"));
  if (!machine.error.empty()) return yield();
  if (++warp.arrived == warp.lanes) {
    if (orders_memory) warp.barriers++;
    return release_warp(running.current->linear / 32);
  }
  running.current->state = AT_WARP_BARRIER;
  yield();
}

// On a GPU the bytes come at any time between; here nothing sensible is there until they are waited for.
void begin_copy(void* target, const void* source) {
  check_copy_begins(target);
  memset(target, 0x7d, 16);
  Copies& copies = machine.copies[running.current->linear];
  copies.under_way.push_back({target, source, copies.closed});
}

void close_copies() { machine.copies[running.current->linear].closed++; }

void wait_for_copies(unsigned groups) {
  Copies& copies = machine.copies[running.current->linear];
  const auto landed = [&](const Copies::Copy& copy) { return copy.group + groups < copies.closed; };
  for (const Copies::Copy& copy : copies.under_way) {
    if (!landed(copy)) break;  // they are in their order
    check_copy_lands(copy.target, copy.source);
    if (copy.source) memcpy(copy.target, copy.source, 16);
    else memset(copy.target, 0, 16);
  }
  copies.under_way.erase(std::remove_if(copies.under_way.begin(), copies.under_way.end(), landed), copies.under_way.end());
}

void* shared_memory(const void* declaration, size_t bytes) {
  for (const SharedRange& range : machine.ranges)
    if (range.declaration == declaration) return range.start;
  const size_t start = (machine.shared_used + 15) / 16 * 16, end = start + bytes;
  if (end + SHARED_GAP > machine.shared.size()) {
    fail(place(0, "the block's shared memory is larger than any architecture has"));
    yield();
  }
  machine.shared_used = end + SHARED_GAP;
  machine.ranges.push_back({declaration, machine.shared.data() + start, bytes});
  return machine.shared.data() + start;
}

Machine::~Machine() {
  for (const Thread& thread : threads) munmap(thread.stack, STACK_BYTES);
}

namespace {

// A grid on its way; any number of threads take blocks from it, each the next one by number.
struct Launch : Job {
  explicit Launch(const Grid& grid)
      : grid(grid), blocks(static_cast<uint64_t>(grid.grid.x) * grid.grid.y * grid.grid.z) {}

  // For the launching thread. A grid of few or cheap blocks is done before it is worth anybody's while to come.
  std::string run() {
    const bool shares = grid.order == Order::Any;
    const auto begin = std::chrono::steady_clock::now();
    bool offered = false;
    work([&] {
      if (offered || !shares || std::chrono::steady_clock::now() - begin < ALONE) return;
      offered = true;
      offer(*this);
    });
    if (offered) withdraw(*this);
    return std::move(error);
  }

  void help() override {
    work([] {});
  }

 private:
  // Takes blocks until none is left; calls `after` behind each.
  template <class After>
  void work(After after) {
    set_up();
    Random random(grid.seed);
    std::vector<unsigned> turns(running.count);
    std::iota(turns.begin(), turns.end(), 0u);
    if (grid.order == Order::Reversed) std::reverse(turns.begin(), turns.end());
    if (!grow(running.count)) return fail_at(0, "no memory for the stacks of a block's threads");
    running.threads = machine.threads.data();
    for (;;) {
      const uint64_t block = next.fetch_add(1);
      if (block >= blocks || block > failed) return;
      const uint64_t linear = grid.order == Order::Reversed ? blocks - 1 - block : block;
      const uint3 index = {static_cast<unsigned>(linear % grid.grid.x), static_cast<unsigned>(linear / grid.grid.x % grid.grid.y),
                           static_cast<unsigned>(linear / (static_cast<uint64_t>(grid.grid.x) * grid.grid.y))};
      machine.grid_block = static_cast<unsigned>(linear);
      std::string wrong = run_block(grid, index, turns, random);
      if (!wrong.empty()) fail_at(block, std::move(wrong));
      after();
    }
  }

  void set_up() const {
    running.block_size = grid.block;
    running.grid_size = grid.grid;
    running.count = grid.block.x * grid.block.y * grid.block.z;
    machine.seed = grid.seed;
    machine.barriers = 0;
    machine.error.clear();
    if (machine.shared.empty()) machine.shared.resize(SHARED_MAX + 16 * SHARED_GAP);
  }

  // Blocks before it have been taken by then and are ended, so what is kept at last is the first one's.
  void fail_at(uint64_t block, std::string wrong) {
    std::lock_guard lock(mutex);
    if (block >= failed) return;
    failed = block;
    error = std::move(wrong);
  }

  const Grid& grid;
  const uint64_t blocks;
  std::atomic<uint64_t> next{0};          // block to take
  std::atomic<uint64_t> failed{UINT64_MAX};  // the first block that did; none behind it is begun
  std::mutex mutex;
  std::string error;

  // Waking a thread and waiting for it costs about as much.
  static constexpr std::chrono::microseconds ALONE{50};
};

}  // namespace

std::string run(const Grid& grid) { return Launch(grid).run(); }

}  // namespace rota_host
