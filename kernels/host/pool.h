// pool.h: the host's cores, lent to whoever runs a grid of blocks.
#pragma once

namespace rota_host {

// Work that several threads can have a share in. It stays where it is from `offer` to `withdraw`.
struct Job {
  // Takes from what is left until nothing is; called by any number of threads at once.
  virtual void help() = 0;

  unsigned helpers = 0;  // the pool's threads that are in it; guarded by the pool
 protected:
  ~Job() = default;
};

// Lets the pool's threads help with the job: one for each core but the caller's, shared by all jobs of the process. They come when they have
// ended what they do, or never: whoever offers a job works on it too and waits for no one to come, so launches can't wait for each other.
void offer(Job& job);
// Lets nobody else come, and waits for those who have.
void withdraw(Job& job);

}  // namespace rota_host
