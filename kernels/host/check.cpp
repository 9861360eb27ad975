// check.cpp: races, reads of what nobody wrote, and accesses out of bounds, seen at every access that a kernel makes.
//
// For this build the kernels are compiled with -fsanitize=thread, which makes g++ call a function for each load and store. Those functions are
// not the sanitizer's but the ones below. So the kernels' sources stay as they are, and pointers hide nothing.
//
// For each byte the checker keeps its last write and two of its last readers. Two accesses of different threads are ordered when the block
// passed a barrier between them, or, in one warp, a __syncwarp; those of different blocks never are. Of accesses that are not
// ordered, at least one of them a write and not both atomic, it reports a race: whatever the order of turns happened to be.
// What it can miss: a third reader of a byte whose first two are ordered with the writer by __syncwarp alone.
#ifdef ROTA_CHECK

#include "check.h"

#include "fibers.h"

#include <link.h>

#include <cstdio>
#include <vector>

namespace rota_host {
namespace {

// When and by whom a byte was touched. `thread` is 1 above its number, so that 0 is nobody.
struct Touch {
  unsigned thread, block, block_barriers, warp_barriers;
  bool atomic;
};

struct Byte {
  Touch write, reads[2];
  bool under_way;  // a copy is, and nobody has waited for it
};

// A stretch of memory and what is known of its bytes.
struct Region {
  uint64_t start, bytes;
  bool initialised, writable;
  std::vector<Byte> shadow;
};

enum class Kind { Read, Write, Atomic };

struct Checker {
  std::vector<Region> buffers;
  std::vector<Byte> shared;
  uint64_t params, params_bytes;
};

thread_local Checker* checker = nullptr;

Touch touch(Kind kind) {
  const Thread& thread = *running.current;
  return {thread.linear + 1, machine.grid_block, machine.barriers, machine.warps[thread.linear / 32].barriers,
          kind == Kind::Atomic};
}

bool ordered(const Touch& before, const Touch& now) {
  if (before.thread == 0) return true;
  if (before.block != now.block) return false;
  if (before.thread == now.thread || before.block_barriers < now.block_barriers) return true;
  return (before.thread - 1) / 32 == (now.thread - 1) / 32 && before.warp_barriers < now.warp_barriers;
}

const char* verb(Kind kind) { return kind == Kind::Read ? "reads" : kind == Kind::Write ? "writes" : "changes atomically"; }

std::string who(Kind kind) {
  char text[160];
  snprintf(text, sizeof text, "thread %u of block %u %s ", running.current->linear, machine.grid_block, verb(kind));
  return text;
}

void report(Kind kind, const std::string& what) {
  fail(who(kind) + what);
  stop();
}

void report_race(Kind kind, const std::string& place, const Touch& other, const char* did) {
  char text[200];
  snprintf(text, sizeof text, ", which thread %u of block %u %s, and no barrier between them: a race", other.thread - 1,
           other.block, did);
  report(kind, place + text);
}

void note_read(Byte& byte, const Touch& now) {
  for (Touch& read : byte.reads) {
    if (read.thread == now.thread || ordered(read, now)) {
      read = now;
      return;
    }
  }
}

// One byte that may be touched; `place` names it.
template <class Place>
void check_byte(Byte& byte, bool initialised, Kind kind, const Place& place) {
  const Touch now = touch(kind);
  if (kind != Kind::Write && byte.under_way) return report(kind, place() + ", to which a copy is under way that was not waited for");
  if (kind != Kind::Write && !initialised && byte.write.thread == 0) return report(kind, place() + ", which nobody has written");
  const bool both_atomic = byte.write.atomic && kind == Kind::Atomic;
  if (!both_atomic && !ordered(byte.write, now)) return report_race(kind, place(), byte.write, "wrote");
  if (kind == Kind::Read) return note_read(byte, now);
  for (const Touch& read : byte.reads)
    if (!ordered(read, now)) return report_race(kind, place(), read, "read");
  byte.write = now;
  byte.under_way = false;
}

bool within(uint64_t address, uint64_t bytes, const void* start, uint64_t size) {
  const uint64_t begin = reinterpret_cast<uint64_t>(start);
  return address >= begin && address + bytes <= begin + size;
}

void check_shared(uint64_t address, unsigned bytes, Kind kind) {
  for (size_t index = 0; index < machine.ranges.size(); index++) {
    const SharedRange& range = machine.ranges[index];
    if (!within(address, bytes, range.start, range.bytes)) continue;
    const uint64_t first = address - reinterpret_cast<uint64_t>(machine.shared.data());
    for (unsigned i = 0; i < bytes; i++) {
      check_byte(checker->shared[first + i], false, kind, [&] {
        const uint64_t offset = address + i - reinterpret_cast<uint64_t>(range.start);
        return "byte " + std::to_string(offset) + " of shared array " + std::to_string(index);
      });
    }
    return;
  }
  report(kind, "shared memory outside of every array");
}

// Constants that the compiler put into the library.
bool in_library(uint64_t address) {
  struct Search { uint64_t address; bool found; } search{address, false};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto& search = *static_cast<Search*>(data);
        bool ours = false, holds = false;
        const uint64_t here = reinterpret_cast<uint64_t>(&in_library);
        for (int i = 0; i < info->dlpi_phnum; i++) {
          if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
          const uint64_t start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr, end = start + info->dlpi_phdr[i].p_memsz;
          ours = ours || (here >= start && here < end);
          holds = holds || (search.address >= start && search.address < end);
        }
        search.found = search.found || (ours && holds);
        return 0;
      },
      &search);
  return search.found;
}

void check(const void* pointer, unsigned bytes, Kind kind) {
  if (!checker) return;
  const uint64_t address = reinterpret_cast<uint64_t>(pointer);
  if (within(address, bytes, running.current->stack, STACK_BYTES)) return;
  if (within(address, bytes, machine.shared.data(), machine.shared.size())) return check_shared(address, bytes, kind);
  for (size_t index = 0; index < checker->buffers.size(); index++) {
    Region& region = checker->buffers[index];
    if (address < region.start || address + bytes > region.start + region.bytes) continue;
    if (kind != Kind::Read && !region.writable) return report(kind, "buffer " + std::to_string(index) + ", which is read-only");
    for (unsigned i = 0; i < bytes; i++) {
      const uint64_t offset = address + i - region.start;
      check_byte(region.shadow[offset], region.initialised, kind,
                 [&] { return "byte " + std::to_string(offset) + " of buffer " + std::to_string(index); });
    }
    return;
  }
  // The emulation's own state: who runs, and what lanes show each other.
  if (within(address, bytes, &running, sizeof running)) return;
  if (within(address, bytes, running.threads, running.count * sizeof(Thread))) return;
  if (kind == Kind::Read && within(address, bytes, reinterpret_cast<void*>(checker->params), checker->params_bytes)) return;
  if (kind == Kind::Read && in_library(address)) return;
  char text[64];
  snprintf(text, sizeof text, "%u bytes at %#lx, outside of every buffer", bytes, static_cast<unsigned long>(address));
  report(kind, text);
}

}  // namespace

void check_block() {
  if (checker) checker->shared.assign(machine.shared.size(), {});
}

void check_copy_begins(void* target) {
  if (!checker) return;
  check(target, 16, Kind::Write);
  const uint64_t first = reinterpret_cast<uint64_t>(target) - reinterpret_cast<uint64_t>(machine.shared.data());
  for (unsigned i = 0; i < 16 && first + i < checker->shared.size(); i++) checker->shared[first + i].under_way = true;
}

void check_copy_lands(void* target, const void* source) {
  if (!checker) return;
  if (source) check(source, 16, Kind::Read);
  check(target, 16, Kind::Write);
}

Checking::Checking(const RotaHostCheck& check, const void* params, size_t params_bytes) {
  auto* made = new Checker{};
  for (uint32_t i = 0; i < check.buffer_count; i++) {
    const RotaHostBuffer& buffer = check.buffers[i];
    made->buffers.push_back({buffer.address, buffer.bytes, buffer.initialised != 0, buffer.writable != 0,
                             std::vector<Byte>(buffer.bytes)});
  }
  made->params = reinterpret_cast<uint64_t>(params);
  made->params_bytes = params_bytes;
  checker = made;
}

Checking::~Checking() {
  delete checker;
  checker = nullptr;
}

}  // namespace rota_host

// What -fsanitize=thread makes the compiler call.
using rota_host::Kind;
#define HOOK extern "C" __attribute__((visibility("hidden")))
#define ACCESSES(bytes)                                                                                          \
  HOOK void __tsan_read##bytes(void* at) { rota_host::check(at, bytes, Kind::Read); }                            \
  HOOK void __tsan_write##bytes(void* at) { rota_host::check(at, bytes, Kind::Write); }                          \
  HOOK void __tsan_unaligned_read##bytes(void* at) { rota_host::check(at, bytes, Kind::Read); }                  \
  HOOK void __tsan_unaligned_write##bytes(void* at) { rota_host::check(at, bytes, Kind::Write); }                \
  HOOK void __tsan_volatile_read##bytes(void* at) { rota_host::check(at, bytes, Kind::Read); }                   \
  HOOK void __tsan_volatile_write##bytes(void* at) { rota_host::check(at, bytes, Kind::Write); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
HOOK void __tsan_read_range(void* at, size_t bytes) { rota_host::check(at, static_cast<unsigned>(bytes), Kind::Read); }
HOOK void __tsan_write_range(void* at, size_t bytes) { rota_host::check(at, static_cast<unsigned>(bytes), Kind::Write); }
HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK void __tsan_vptr_read(void**) {}
HOOK unsigned __tsan_atomic32_fetch_or(volatile unsigned* at, unsigned bits, int) {
  rota_host::check(const_cast<unsigned*>(at), 4, Kind::Atomic);
  return __atomic_fetch_or(at, bits, __ATOMIC_RELAXED);
}

#endif
