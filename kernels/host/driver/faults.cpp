// faults.cpp: what goes wrong on purpose, and the settings.
//
// ROTA_STANDIN_GPUS       how many GPUs there are (1)
// ROTA_STANDIN_MEMORY_MB  memory of each (16384)
// ROTA_STANDIN_CC         compute capability ("9.0")
// ROTA_STANDIN_POOLS      0: as a driver without memory pools (1)
// ROTA_STANDIN_GPU        whose times it has: h100, h200, a100, l4 or t4; unset: what the host takes to compute (clock.h)
// ROTA_STANDIN_HOST       how the host's own time passes then: "real", or "none" (clock.h)
// ROTA_STANDIN_SLOWER     how many times as long everything takes then (1; model.cpp)
// ROTA_STANDIN_TIMES      a file that says what kernels take there (model.cpp)
// ROTA_STANDIN_TRACE      a file for what happens when, as chrome://tracing shows it (timetable.cpp)
// ROTA_STANDIN_COPY_US_PER_MB  how long copies from the host take at least (0)
// ROTA_STANDIN_FAULTS     a file that is looked at before each call that a fault can hit; its lines:
//   lost N       GPU N does not answer; when the line goes, a context that is reset works again
//   alloc N      the Nth allocation from when the line was first seen fails, once
//   launch N     the same for launches: the kernel faults, and takes its context with it
#include "driver.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <sys/stat.h>

namespace standin {
namespace {

struct Faults {
  std::mutex mutex;
  struct timespec changed = {};
  off_t size = -1;
  std::unordered_set<int> lost;
  std::map<std::string, long> left;  // by what is to fail: how many more go well, and -1 when it has happened

  void look() {
    const char* file = getenv("ROTA_STANDIN_FAULTS");
    struct stat status;
    if (!file || stat(file, &status) != 0) {
      lost.clear();
      size = -1;
      return;
    }
    const bool same = status.st_mtim.tv_sec == changed.tv_sec && status.st_mtim.tv_nsec == changed.tv_nsec && status.st_size == size;
    if (same) return;
    changed = status.st_mtim;
    size = status.st_size;
    lost.clear();
    std::ifstream lines(file);
    std::string what;
    long number;
    while (lines >> what >> number) {
      if (what == "lost") lost.insert(static_cast<int>(number));
      else left.emplace(what, number);
    }
  }
};

Faults& faults() {
  static Faults* all = new Faults;
  return *all;
}

}  // namespace

bool fails_now(const char* what) {
  std::lock_guard lock(faults().mutex);
  faults().look();
  auto found = faults().left.find(what);
  if (found == faults().left.end() || found->second < 0) return false;
  return --found->second == 0 ? (found->second = -1, true) : false;
}

bool is_lost(int ordinal) {
  std::lock_guard lock(faults().mutex);
  faults().look();
  return faults().lost.count(ordinal) != 0;
}

void complain(const std::string& what) { fprintf(stderr, "stand-in GPU: %s\n", what.c_str()); }

namespace {
std::mutex counts_mutex;
std::map<std::string, uint64_t>& counts() {
  static auto* all = new std::map<std::string, uint64_t>;
  return *all;
}
}  // namespace

void count(const char* what) {
  std::lock_guard lock(counts_mutex);
  counts()[what]++;
}

const char* setting(const char* name, const char* otherwise) {
  const char* value = getenv(name);
  return value && *value ? value : otherwise;
}

}  // namespace standin

/* How often something was asked for since the process began; not part of NVIDIA's interface. */
extern "C" __attribute__((visibility("default"))) uint64_t rota_standin_count(const char* what) {
  std::lock_guard lock(standin::counts_mutex);
  return standin::counts()[what];
}
