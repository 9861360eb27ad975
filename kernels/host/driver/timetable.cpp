// timetable.cpp: the timetable as a file that chrome://tracing and https://ui.perfetto.dev open: a process per GPU, a line per engine.
//
// It is Chrome's trace-event format, as an array that may end anywhere: one event a line, times in microseconds of virtual time. `call` numbers the
// host's calls, so that the kernels of one graph launch have the same; `asked` is the host's time at the call.
#include "clock.h"
#include "driver.h"

#include <cinttypes>
#include <cstdio>

namespace standin {
namespace {

FILE* opened() {
  static FILE* file = [] {
    const char* name = setting("ROTA_STANDIN_TRACE", "");
    FILE* made = *name ? fopen(name, "w") : nullptr;
    if (*name && !made) complain(std::string("ROTA_STANDIN_TRACE: ") + name + " can't be written");
    if (!made) return made;
    setvbuf(made, nullptr, _IOLBF, 1 << 16);
    fprintf(made, "[\n");
    const char* const ENGINES[KINDS] = {"copies in", "kernels", "copies out"};
    for (auto& device : devices()) {
      fprintf(made, "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%d,\"args\":{\"name\":\"GPU %d, %s\"}},\n", device->ordinal,
              device->ordinal, limits()->full_name);
      for (unsigned kind = 0; kind < KINDS; kind++)
        fprintf(made, "{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":%d,\"tid\":%u,\"args\":{\"name\":\"%s\"}},\n", device->ordinal, kind,
                ENGINES[kind]);
    }
    return made;
  }();
  return file;
}

}  // namespace

void trace(const Stream& stream, const Operation& operation, uint64_t call, uint64_t asked, Span span) {
  FILE* file = opened();
  if (!file) return;
  const auto microseconds = [](uint64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e3; };
  fprintf(file,
          "{\"ph\":\"X\",\"name\":\"%s\",\"pid\":%d,\"tid\":%u,\"ts\":%.3f,\"dur\":%.3f,"
          "\"args\":{\"stream\":%u,\"call\":%" PRIu64 ",\"asked\":%.3f,\"bytes\":%" PRIu64 "}},\n",
          operation.name.c_str(), stream.device->ordinal, static_cast<unsigned>(operation.kind), microseconds(span.begin),
          microseconds(span.end - span.begin), stream.number, call, microseconds(asked), operation.bytes);
}

}  // namespace standin
