// stream.cpp: streams, events, capture and graphs.
#include "driver.h"

namespace standin {

Stream::Stream(Device* of) : device(of), thread([this] {
  std::unique_lock lock(mutex);
  for (;;) {
    more.wait(lock, [&] { return stopping || !queue.empty(); });
    if (queue.empty()) return;
    Operation operation = std::move(queue.front());
    queue.pop_front();
    busy = true;
    lock.unlock();
    // In a context that is gone nothing is done any more.
    if (is_lost(device->ordinal)) device->error = CUDA_ERROR_UNKNOWN;
    if (device->error == CUDA_SUCCESS)
      if (CUresult result = operation()) device->error = result;
    operation = nullptr;
    lock.lock();
    busy = false;
    if (queue.empty()) idle.notify_all();
  }
}) {}

Stream::~Stream() {
  {
    std::lock_guard lock(mutex);
    stopping = true;
  }
  more.notify_all();
  thread.join();
}

void Stream::push(Operation operation) {
  std::lock_guard lock(mutex);
  if (capturing) {
    captured.push_back(std::move(operation));
    return;
  }
  queue.push_back(std::move(operation));
  more.notify_one();
}

void Stream::wait() {
  std::unique_lock lock(mutex);
  idle.wait(lock, [&] { return queue.empty() && !busy; });
}

namespace {

// The stream of the current context, and the context.
CUresult find(CUstream handle, Device*& device, std::shared_ptr<Stream>& stream) {
  if (CUresult result = current(device)) return result;
  stream = device->find<Stream>(handle);
  return stream ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult find(CUevent handle, Device*& device, std::shared_ptr<Event>& event) {
  if (CUresult result = current(device)) return result;
  event = device->find<Event>(handle);
  return event ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

// Waits in slices: in a context that is lost an event is never come to.
void reach(Device* device, Event& event, uint64_t record) {
  std::unique_lock lock(event.mutex);
  while (event.done < record && device->error == CUDA_SUCCESS) event.reached.wait_for(lock, std::chrono::milliseconds(2));
}

}  // namespace
}  // namespace standin

using namespace standin;

ROTA_DRIVER_CALL cuStreamCreate(CUstream* stream, unsigned) {
  Device* device;
  if (CUresult result = current(device)) return result;
  *stream = reinterpret_cast<CUstream>(device->make<Stream>(device));
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuStreamDestroy_v2(CUstream stream) {
  Device* device = current_device;
  if (!device) return CUDA_ERROR_INVALID_CONTEXT;
  return device->forget(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

ROTA_DRIVER_CALL cuStreamSynchronize(CUstream handle) {
  Device* device;
  std::shared_ptr<Stream> stream;
  if (CUresult result = find(handle, device, stream)) return result;
  if (captures_of_this_thread) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  stream->wait();
  return device->error;
}

ROTA_DRIVER_CALL cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
  Device* device;
  std::shared_ptr<Stream> stream;
  std::shared_ptr<Event> event;
  if (CUresult result = find(handle, device, stream)) return result;
  if (CUresult result = find(event_handle, device, event)) return result;
  uint64_t record;
  {
    std::lock_guard lock(event->mutex);
    record = event->recorded;
  }
  stream->push([=] { return reach(device, *event, record), CUDA_SUCCESS; });
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuEventCreate(CUevent* event, unsigned) {
  Device* device;
  if (CUresult result = current(device)) return result;
  *event = reinterpret_cast<CUevent>(device->make<Event>());
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuEventDestroy_v2(CUevent event) {
  Device* device = current_device;
  if (!device) return CUDA_ERROR_INVALID_CONTEXT;
  return device->forget(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

ROTA_DRIVER_CALL cuEventRecord(CUevent handle, CUstream stream_handle) {
  Device* device;
  std::shared_ptr<Stream> stream;
  std::shared_ptr<Event> event;
  if (CUresult result = find(stream_handle, device, stream)) return result;
  if (CUresult result = find(handle, device, event)) return result;
  uint64_t record;
  {
    std::lock_guard lock(event->mutex);
    record = ++event->recorded;
  }
  stream->push([=] {
    std::lock_guard lock(event->mutex);
    event->done = record;
    event->time = std::chrono::steady_clock::now();
    event->reached.notify_all();
    return CUDA_SUCCESS;
  });
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuEventQuery(CUevent handle) {
  Device* device;
  std::shared_ptr<Event> event;
  if (CUresult result = find(handle, device, event)) return result;
  std::lock_guard lock(event->mutex);
  return event->done >= event->recorded ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

ROTA_DRIVER_CALL cuEventSynchronize(CUevent handle) {
  Device* device;
  std::shared_ptr<Event> event;
  if (CUresult result = find(handle, device, event)) return result;
  uint64_t record;
  {
    std::lock_guard lock(event->mutex);
    record = event->recorded;
  }
  reach(device, *event, record);
  return device->error;
}

ROTA_DRIVER_CALL cuEventElapsedTime_v2(float* milliseconds, CUevent from_handle, CUevent to_handle) {
  Device* device;
  std::shared_ptr<Event> from, to;
  if (CUresult result = find(from_handle, device, from)) return result;
  if (CUresult result = find(to_handle, device, to)) return result;
  std::scoped_lock lock(from->mutex, to->mutex);
  if (!from->recorded || !to->recorded) return CUDA_ERROR_INVALID_HANDLE;
  if (from->done < from->recorded || to->done < to->recorded) return CUDA_ERROR_NOT_READY;
  *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuStreamBeginCapture_v2(CUstream handle, int) {
  Device* device;
  std::shared_ptr<Stream> stream;
  if (CUresult result = find(handle, device, stream)) return result;
  std::lock_guard lock(stream->mutex);
  if (stream->capturing) return CUDA_ERROR_INVALID_VALUE;
  stream->capturing = true;
  count("capture");
  stream->captured.clear();
  captures_of_this_thread++;
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  Device* device;
  std::shared_ptr<Stream> stream;
  if (captures_of_this_thread) captures_of_this_thread--;
  *graph = nullptr;
  if (CUresult result = find(handle, device, stream)) return result;
  Graph captured;
  {
    std::lock_guard lock(stream->mutex);
    if (!stream->capturing) return CUDA_ERROR_INVALID_VALUE;
    stream->capturing = false;
    captured.operations.swap(stream->captured);
  }
  *graph = reinterpret_cast<CUgraph>(device->make<Graph>(captured));
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph handle, unsigned long long) {
  Device* device;
  if (CUresult result = current(device)) return result;
  auto graph = device->find<Graph>(handle);
  if (!graph) return CUDA_ERROR_INVALID_HANDLE;
  *executable = reinterpret_cast<CUgraphExec>(device->make<Graph>(*graph));
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuGraphDestroy(CUgraph graph) {
  Device* device = current_device;
  if (!device) return CUDA_ERROR_INVALID_CONTEXT;
  return device->forget(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

ROTA_DRIVER_CALL cuGraphExecDestroy(CUgraphExec graph) { return cuGraphDestroy(reinterpret_cast<CUgraph>(graph)); }

ROTA_DRIVER_CALL cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
  Device* device;
  std::shared_ptr<Stream> stream;
  if (CUresult result = find(stream_handle, device, stream)) return result;
  auto graph = device->find<Graph>(handle);
  if (!graph) return CUDA_ERROR_INVALID_HANDLE;
  count("graph launch");
  stream->push([graph] {
    for (const Operation& operation : graph->operations)
      if (CUresult result = operation()) return result;
    return CUDA_SUCCESS;
  });
  return CUDA_SUCCESS;
}
