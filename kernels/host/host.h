/* host.h: the kernels compiled for the CPU, behind a C interface; what a stand-in driver and the tests call. */
#ifndef ROTA_HOST_H
#define ROTA_HOST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One kernel, as its source declares it. */
typedef struct RotaHostKernel {
  const char* name;
  size_t params_bytes;
  uint32_t threads_max; /* its launch bound */
} RotaHostKernel;

/* Memory that a checked launch may touch. */
typedef struct RotaHostBuffer {
  uint64_t address;
  uint64_t bytes;
  uint32_t initialised; /* 0: reading a byte that the launch has not written is an error */
  uint32_t writable;
} RotaHostBuffer;

/* In what order the threads of a block, and the blocks of a grid, take turns. ANY: threads forward, and blocks side by side on the host's
   cores where that is worth it; in the library that is built for checking, which needs an order, the same as FORWARD. */
enum RotaHostOrder { ROTA_HOST_FORWARD = 0, ROTA_HOST_REVERSED = 1, ROTA_HOST_RANDOM = 2, ROTA_HOST_ANY = 3 };

typedef struct RotaHostCheck {
  uint32_t order; /* RotaHostOrder */
  uint32_t buffer_count;
  uint64_t seed; /* of ROTA_HOST_RANDOM, and of what shared memory holds at first */
  const RotaHostBuffer* buffers;
} RotaHostCheck;

/* The kernel of that name, or NULL. */
const RotaHostKernel* rota_host_find(const char* name);
size_t rota_host_kernel_count(void);
const RotaHostKernel* rota_host_kernel(size_t index);

/* Runs a whole grid before it returns, in ROTA_HOST_ANY's order. 0 when it ended well; else `error` says what was wrong, in words, and what the
   kernel wrote until then stays written. Any number of threads may launch at once. */
int rota_host_launch(const char* name, const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes,
                     const void* params, size_t params_bytes, char* error, size_t error_bytes);

/* The same in a given order. In the library that is built for checking it also records every access to memory, and fails on
   races, on reads of what nobody wrote, and on accesses outside of `check->buffers`. */
int rota_host_launch_checked(const char* name, const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes,
                             const void* params, size_t params_bytes, const RotaHostCheck* check, char* error,
                             size_t error_bytes);

#ifdef __cplusplus
}
#endif
#endif
