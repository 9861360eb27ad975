// clock.h: virtual time, in nanoseconds since the driver was opened: when the GPU that is pretended would do what.
//
// ROTA_STANDIN_GPU names a GPU. Then every operation takes what it takes there at the least (model.cpp), and gets its span of virtual time
// when the host asks for it. It begins at the latest of
//   - the end of what its stream was given before, and of what that waits for (events),
//   - the host's own time when it asks,
//   - the first gap on its engine that holds it whole. An engine does one thing at a time; a GPU has one for copies in, one for copies
//     out, and one for kernels and whatever else moves inside its memory.
// All of that is known at the call, so the timetable follows from the calls and their order alone: how long this machine computes changes
// nothing in it, and answers are still computed. Left out: kernels side by side (but one that moves pieces over the bus counts as a copy: launch.cpp),
// copies that slow down kernels or each other, what a launch costs before it begins, clocks that change.
//
// What has ended is seen (by queries, waits, elapsed times) when it was really computed and the host's time has come to its end. The host's
// time is one for the whole process. ROTA_STANDIN_HOST says how it passes:
//   real  as the real one, so whoever polls or waits sees the GPU's delays. It stops at the end of an operation that is still being computed
//         and goes on from there: computing that takes longer than the GPU would shifts the time, and breaks no order.
//   none  the host takes no time. It passes only when threads ask for what has not ended, and goes to the earliest end that is asked for once
//         each thread with work on a GPU asks. So the same calls give the same times, however the host's threads are scheduled.
#pragma once

#include "api.h"

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace standin {

struct Device;
struct Stream;

struct Span { uint64_t begin, end; };

enum class Kind { COPY_IN, INSIDE, COPY_OUT };
constexpr unsigned KINDS = 3;

// One thing that a GPU does, on the engine of its kind. A failure of its work takes the context with it.
struct Operation {
  Kind kind;
  std::string name;
  uint64_t bytes;        // that a copy moves; 0 for kernels
  uint64_t nanoseconds;  // that it takes there; 0 when no GPU is named
  std::function<CUresult()> work;
};

// When an engine is taken. Spans that are over are forgotten, so it holds what is still to come.
class Engine {
 public:
  // Takes the first gap of that length that begins at `ready` or later; nothing ends before `now` any more.
  Span take(uint64_t ready, uint64_t nanoseconds, uint64_t now);

 private:
  std::map<uint64_t, uint64_t> taken_;  // ends by begin; they do not overlap
};

// Whether a GPU is named.
bool is_timed();

// The host asks for these on the stream, which are done by what is returned: the end of the last one's span. The stream's lock is held.
uint64_t settle(Stream& stream, const std::vector<Operation>& operations);
// What takes no time, and comes when the stream has come to it, the host has asked for it, and it is `not_before`.
uint64_t settle_point(Stream& stream, uint64_t not_before);
// What was settled to end then was computed.
void computed(uint64_t end);

// Whether the host's time has come to `end`. `computed`: what ends there was.
bool has_come(uint64_t end, bool computed);
// Waits until it has, once it was computed.
void await(const Device& device, uint64_t end);
// Real nanoseconds since the driver was opened.
uint64_t real_time();

// model.cpp: what things take on the named GPU; 0 when none is named.
struct Limits {
  const char* name;
  const char* full_name;
  double bus_bytes_per_second;     // each way
  double memory_bytes_per_second;
  int multiprocessors;
};
// The named GPU's; null when none is.
const Limits* limits();
// Whether the settings make sense; says what is wrong with them.
bool settings_are_sound();
uint64_t copy_time(uint64_t bytes);
uint64_t inside_time(uint64_t bytes);
uint64_t kernel_time(const std::string& kernel, const uint32_t grid[3], const void* params, size_t params_bytes);

// timetable.cpp: writes down what an engine does and when, if ROTA_STANDIN_TRACE names a file.
void trace(const Stream& stream, const Operation& operation, uint64_t call, uint64_t asked, Span span);

}  // namespace standin
