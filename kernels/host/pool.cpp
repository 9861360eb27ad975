// pool.cpp: the threads that help with grids of blocks.
#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <thread>

namespace rota_host {
namespace {

// ROTA_HOST_THREADS: how many threads run blocks of one grid at most, the launching one included; else as many as there are cores.
unsigned threads_max() {
  const char* set = getenv("ROTA_HOST_THREADS");
  const int threads = set && *set ? atoi(set) : static_cast<int>(std::thread::hardware_concurrency());
  return static_cast<unsigned>(std::clamp(threads, 1, 256));
}

class Pool {
 public:
  Pool() {
    for (unsigned helper = 1; helper < threads_max(); helper++) {
      std::thread thread([this] { serve(); });
      pthread_setname_np(thread.native_handle(), "rota-blocks");
      thread.detach();
    }
  }

  void add(Job& job) {
    {
      std::lock_guard lock(mutex_);
      jobs_.push_back(&job);
    }
    more_.notify_all();
  }

  void remove(Job& job) {
    std::unique_lock lock(mutex_);
    close(job);
    left_.wait(lock, [&] { return job.helpers == 0; });
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      more_.wait(lock, [&] { return !jobs_.empty(); });
      Job& job = *jobs_.front();
      job.helpers++;
      lock.unlock();
      job.help();
      lock.lock();
      close(job);  // nothing of it is left
      if (--job.helpers == 0) left_.notify_all();
    }
  }

  void close(Job& job) { jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end()); }

  std::mutex mutex_;
  std::condition_variable more_, left_;
  std::deque<Job*> jobs_;  // that threads may come to, the oldest first
};

// Never destroyed: its threads live as long as the process.
Pool& pool() {
  static auto* made = new Pool;
  return *made;
}

}  // namespace

void offer(Job& job) { pool().add(job); }
void withdraw(Job& job) { pool().remove(job); }

}  // namespace rota_host
