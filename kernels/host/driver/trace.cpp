// trace.cpp: in which order copies from the host were given to the driver, and done; for tests of what has to wait for what.
#include "driver.h"

namespace {

// What happened to a copy: it was given, or done.
struct Moment {
  uint64_t copy;    // its number, in the order in which they were given
  uint64_t stream;  // an address, to tell streams apart
  uint64_t bytes;
  uint64_t done;    // 0: it was given
};

std::mutex trace_mutex;
bool tracing = false;
uint64_t copies = 0;
std::vector<Moment>& moments() {
  static auto* all = new std::vector<Moment>;
  return *all;
}

}  // namespace

uint64_t standin::trace_given(const void* stream, size_t bytes) {
  std::lock_guard lock(trace_mutex);
  if (tracing) moments().push_back({copies, reinterpret_cast<uintptr_t>(stream), bytes, 0});
  return copies++;
}

void standin::trace_done(uint64_t number) {
  std::lock_guard lock(trace_mutex);
  if (tracing) moments().push_back({number, 0, 0, 1});
}

/* Begins to note, with nothing noted; not part of NVIDIA's interface. */
extern "C" __attribute__((visibility("default"))) void rota_standin_trace_begin() {
  std::lock_guard lock(trace_mutex);
  moments().clear();
  tracing = true;
}

/* Ends it. Writes up to `room` moments of four words each, and returns how many there are. */
extern "C" __attribute__((visibility("default"))) uint64_t rota_standin_trace_end(uint64_t* into, uint64_t room) {
  std::lock_guard lock(trace_mutex);
  tracing = false;
  for (uint64_t at = 0; at < moments().size() && at < room; at++) {
    const Moment& moment = moments()[at];
    const uint64_t words[4] = {moment.copy, moment.stream, moment.bytes, moment.done};
    for (int word = 0; word < 4; word++) into[4 * at + static_cast<uint64_t>(word)] = words[word];
  }
  return moments().size();
}
