// check.h: records every access to memory while it lives, and fails the launch on what a GPU would not forgive.
#pragma once

#include "host.h"

namespace rota_host {

// For one launch on this thread of the host.
struct Checking {
  Checking(const RotaHostCheck& check, const void* params, size_t params_bytes);
  ~Checking();
  Checking(const Checking&) = delete;
};

}  // namespace rota_host
