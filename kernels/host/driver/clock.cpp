// clock.cpp: the timetable of virtual time, and the host's place in it.
#include "clock.h"

#include "driver.h"

#include <algorithm>
#include <cstring>
#include <set>

namespace standin {

Span Engine::take(uint64_t ready, uint64_t nanoseconds, uint64_t now) {
  while (!taken_.empty() && taken_.begin()->second <= now) taken_.erase(taken_.begin());
  uint64_t begin = ready;
  for (auto& [from, to] : taken_) {
    if (begin + nanoseconds <= from) break;
    begin = std::max(begin, to);
  }
  if (nanoseconds) taken_[begin] = begin + nanoseconds;
  return {begin, begin + nanoseconds};
}

namespace {

using Real = std::chrono::steady_clock;
const Real::time_point OPENED = Real::now();

// One lock for all: calls are few, and each holds it for a moment.
std::mutex mutex;
std::condition_variable passed;

// The ends of what is still being computed. The host's time passes none of them.
std::multiset<uint64_t>& computing() {
  static auto* made = new std::multiset<uint64_t>;  // never destroyed: threads outlive static destructors
  return *made;
}

bool is_computed_until(uint64_t end) { return computing().empty() || *computing().begin() >= end; }

// "real": the host's time as of `real`.
struct RealHost {
  uint64_t time = 0, real = 0;

  uint64_t now() {
    const uint64_t real_now = real_time();
    time += real_now - real;
    real = real_now;
    if (!is_computed_until(time)) time = *computing().begin();
    return time;
  }
};

// "none": what a thread of the host has asked the GPUs to do and not yet seen the end of.
struct HostThread {
  uint64_t given = 0;  // the end of the last of what it gave
  uint64_t seen = 0;   // the last end that it saw
  uint64_t asks = 0;   // for which end it asks now
  bool is_asking = false;
  Real::time_point called = Real::now();

  HostThread();
  ~HostThread();

  bool holds_back(uint64_t end) {
    if (given <= seen || (is_asking && asks >= end)) return false;
    if (Real::now() - called < SILENCE_MAX) return true;
    complain("a thread gave a GPU work and neither asks for it nor ends: virtual time goes on without it");
    seen = given;
    return false;
  }

  static constexpr std::chrono::seconds SILENCE_MAX{20};
};

struct NoHost {
  uint64_t time = 0;
  std::vector<HostThread*> threads;

  HostThread& me() {
    static thread_local HostThread thread;
    thread.called = Real::now();
    return thread;
  }

  // The thread asks for `end`, which was computed or not.
  bool come(uint64_t end, bool computed) {
    HostThread& mine = me();
    mine.is_asking = true;
    mine.asks = end;
    const auto holds_back = [&](HostThread* other) { return other != &mine && other->holds_back(end); };
    if (!computed || !is_computed_until(end)) return false;
    if (end > time && std::any_of(threads.begin(), threads.end(), holds_back)) return false;
    mine.is_asking = false;
    mine.seen = std::max(mine.seen, end);
    time = std::max(time, end);
    return true;
  }
};

RealHost& real_host() {
  static auto* made = new RealHost;
  return *made;
}

NoHost& no_host() {
  static auto* made = new NoHost;
  return *made;
}

HostThread::HostThread() { no_host().threads.push_back(this); }

HostThread::~HostThread() {
  std::lock_guard lock(mutex);
  auto& threads = no_host().threads;
  threads.erase(std::remove(threads.begin(), threads.end(), this), threads.end());
  passed.notify_all();
}

bool host_takes_time() {
  static const bool takes = strcmp(setting("ROTA_STANDIN_HOST", "real"), "none") != 0;
  return takes;
}

// With the lock: the host's time at a call that gives work.
uint64_t asked_at() {
  if (host_takes_time()) return real_host().now();
  no_host().me().is_asking = false;
  return no_host().time;
}

// With the lock: takes note of what the stream was given, and returns when that ends.
uint64_t gave(const Stream& stream) {
  computing().insert(stream.until);
  if (!host_takes_time()) {
    HostThread& mine = no_host().me();
    mine.given = std::max(mine.given, stream.until);
  }
  return stream.until;
}

}  // namespace

bool is_timed() { return limits() != nullptr; }

uint64_t real_time() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(Real::now() - OPENED).count());
}

uint64_t settle(Stream& stream, const std::vector<Operation>& operations) {
  if (!is_timed()) return 0;
  static uint64_t calls = 0;
  std::lock_guard lock(mutex);
  const uint64_t asked = asked_at(), call = ++calls;
  for (const Operation& operation : operations) {
    Engine& engine = stream.device->engines[static_cast<unsigned>(operation.kind)];
    const Span span = engine.take(std::max(asked, stream.until), operation.nanoseconds, asked);
    stream.until = span.end;
    trace(stream, operation, call, asked, span);
  }
  return gave(stream);
}

uint64_t settle_point(Stream& stream, uint64_t not_before) {
  if (!is_timed()) return 0;
  std::lock_guard lock(mutex);
  stream.until = std::max({stream.until, asked_at(), not_before});
  return gave(stream);
}

void computed(uint64_t end) {
  if (!is_timed()) return;
  std::lock_guard lock(mutex);
  if (host_takes_time()) real_host().now();  // which it may pass from here on, and did not before
  computing().erase(computing().find(end));
  passed.notify_all();
}

bool has_come(uint64_t end, bool computed) {
  if (!is_timed()) return computed;
  std::lock_guard lock(mutex);
  if (host_takes_time()) return computed && real_host().now() >= end;
  const bool come = no_host().come(end, computed);
  passed.notify_all();
  return come;
}

void await(const Device& device, uint64_t end) {
  constexpr uint64_t SPIN = 50'000;  // a sleep takes about so long at the least
  if (!is_timed()) return;
  std::unique_lock lock(mutex);
  while (device.error == CUDA_SUCCESS) {
    if (!host_takes_time()) {
      if (no_host().come(end, true)) break;
      passed.wait_for(lock, std::chrono::milliseconds(2));
      continue;
    }
    const uint64_t now = real_host().now();
    if (now >= end) break;
    lock.unlock();
    if (end - now <= SPIN) std::this_thread::yield();
    else std::this_thread::sleep_for(std::chrono::nanoseconds(end - now - SPIN));
    lock.lock();
  }
  passed.notify_all();
}

}  // namespace standin
