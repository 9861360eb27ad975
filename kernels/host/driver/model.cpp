// model.cpp: what things take at the least on the GPU that ROTA_STANDIN_GPU names.
//
// Copies: a fixed start, and their bytes by the bus's rate. What moves inside the GPU: bytes read and written, by the memory's rate. Kernels:
// what ROTA_STANDIN_TIMES says, a file of lines
//   kernel  blocks along x y z  bytes of addresses that the parameters begin with  FNV-1a of the parameters behind them  nanoseconds
// since the driver knows neither bytes nor operations of a kernel; whoever does writes the file (rota_kernels::standin::time_line). A kernel
// that is not in it, and whatever would take less, takes KERNEL_LEAST.
#include "clock.h"
#include "driver.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

namespace standin {
namespace {

// NVIDIA's data sheets: PCI Express 5.0, 4.0 and 3.0 with 16 lanes, which their figures give for both ways together. The memory's rates, the
// multiprocessors and the names are those of device/src/cuda/roofline.rs, which a test holds.
const Limits GPUS[] = {
    {"h100", "H100 SXM", 64e9, 3.35e12, 132},
    {"h200", "H200 SXM", 64e9, 4.8e12, 132},
    {"a100", "A100 SXM 80 GB", 32e9, 2.039e12, 108},
    {"l4", "L4", 32e9, 300e9, 58},
    {"t4", "T4", 16e9, 320e9, 40},
};

// Assumed, not measured: about what an empty kernel, and a copy of a few bytes, are seen to take on GPUs of these years.
constexpr uint64_t KERNEL_LEAST = 2'000, COPY_START = 1'000;

const Limits* find(const char* name) {
  for (const Limits& gpu : GPUS)
    if (strcmp(gpu.name, name) == 0) return &gpu;
  return nullptr;
}

// ROTA_STANDIN_SLOWER: everything takes so many times as long. A daemon plans in real time: where this host computes for milliseconds what the
// GPU does in microseconds, each batch overruns its profile, unless the GPU is that much slower.
uint64_t slower() {
  static const uint64_t factor = strtoull(setting("ROTA_STANDIN_SLOWER", "1"), nullptr, 10);
  return factor;
}

uint64_t nanoseconds(uint64_t bytes, double bytes_per_second) {
  return static_cast<uint64_t>(std::ceil(static_cast<double>(bytes) / bytes_per_second * 1e9));
}

// A kernel's launches by what they are told but for addresses.
struct Times {
  std::map<std::string, size_t> address_bytes;  // by kernel
  std::map<std::string, uint64_t> nanoseconds;  // by key()
  std::string wrong;

  Times() {
    const char* file = setting("ROTA_STANDIN_TIMES", "");
    if (!*file) return;
    std::ifstream lines(file);
    if (!lines) wrong = std::string("ROTA_STANDIN_TIMES: ") + file + " can't be read";
    std::string line;
    for (unsigned number = 1; std::getline(lines, line) && wrong.empty(); number++) {
      if (line.empty() || line[0] == '#') continue;
      std::istringstream fields(line);
      std::string kernel, hash;
      uint32_t grid[3];
      size_t skip;
      uint64_t time;
      if (fields >> kernel >> grid[0] >> grid[1] >> grid[2] >> skip >> hash >> time) {
        address_bytes[kernel] = skip;
        nanoseconds[key(kernel, grid, hash)] = time;
      } else {
        wrong = std::string(file) + ", line " + std::to_string(number) +
                ": expected a kernel, its grid's three numbers, bytes of addresses, a hash and nanoseconds, found: " + line;
      }
    }
  }

  static std::string key(const std::string& kernel, const uint32_t grid[3], const std::string& hash) {
    return kernel + ' ' + std::to_string(grid[0]) + ' ' + std::to_string(grid[1]) + ' ' + std::to_string(grid[2]) + ' ' + hash;
  }
};

const Times& times() {
  static const Times* read = new Times;
  return *read;
}

std::string fnv1a(const unsigned char* bytes, size_t count) {
  uint64_t hash = 0xcbf29ce484222325;
  for (size_t i = 0; i < count; i++) hash = (hash ^ bytes[i]) * 0x100000001b3;
  char text[17];
  snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

}  // namespace

const Limits* limits() {
  static const Limits* named = find(setting("ROTA_STANDIN_GPU", ""));
  return named;
}

bool settings_are_sound() {
  const std::string gpu = setting("ROTA_STANDIN_GPU", ""), host = setting("ROTA_STANDIN_HOST", "real");
  std::string known;
  for (const Limits& limits : GPUS) known += std::string(known.empty() ? "" : ", ") + limits.name;
  if (!gpu.empty() && !limits()) return complain("ROTA_STANDIN_GPU is " + gpu + ", known are " + known), false;
  if (host != "real" && host != "none") return complain("ROTA_STANDIN_HOST is " + host + ", it may be real or none"), false;
  if (slower() == 0 || slower() > 1'000'000) return complain("ROTA_STANDIN_SLOWER may be 1 to 1000000"), false;
  if (!times().wrong.empty()) return complain(times().wrong), false;
  return true;
}

uint64_t copy_time(uint64_t bytes) {
  return limits() ? slower() * (COPY_START + nanoseconds(bytes, limits()->bus_bytes_per_second)) : 0;
}

uint64_t inside_time(uint64_t bytes) {
  return limits() ? slower() * std::max(KERNEL_LEAST, nanoseconds(bytes, limits()->memory_bytes_per_second)) : 0;
}

uint64_t kernel_time(const std::string& kernel, const uint32_t grid[3], const void* params, size_t params_bytes) {
  if (!limits()) return 0;
  const auto skip = times().address_bytes.find(kernel);
  if (skip == times().address_bytes.end() || skip->second > params_bytes) return slower() * KERNEL_LEAST;
  const unsigned char* scalars = static_cast<const unsigned char*>(params) + skip->second;
  const auto found = times().nanoseconds.find(Times::key(kernel, grid, fnv1a(scalars, params_bytes - skip->second)));
  return slower() * (found == times().nanoseconds.end() ? KERNEL_LEAST : std::max(KERNEL_LEAST, found->second));
}

}  // namespace standin

/* What is known of a GPU of that name: 0, or 1 when nothing is. Not part of NVIDIA's interface. */
extern "C" __attribute__((visibility("default"))) int rota_standin_limits(const char* name, double* bus, double* memory,
                                                                          int* multiprocessors) {
  const standin::Limits* found = standin::find(name);
  if (!found) return 1;
  *bus = found->bus_bytes_per_second;
  *memory = found->memory_bytes_per_second;
  *multiprocessors = found->multiprocessors;
  return 0;
}
