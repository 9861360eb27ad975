// stream.cpp: streams, events, capture and graphs.
#include "driver.h"

namespace standin {

Stream::Stream(Device* of) : device(of), number(of->streams++), thread([this] {
  std::unique_lock lock(mutex);
  for (;;) {
    more.wait(lock, [&] { return stopping || !queue.empty(); });
    if (queue.empty()) return;
    auto [work, end] = std::move(queue.front());
    queue.pop_front();
    busy = true;
    lock.unlock();
    // In a context that is gone nothing is done any more.
    if (is_lost(device->ordinal)) device->error = CUDA_ERROR_UNKNOWN;
    if (device->error == CUDA_SUCCESS)
      if (CUresult result = work()) device->error = result;
    work = nullptr;
    computed(end);
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
  const uint64_t end = settle(*this, {operation});
  queue.emplace_back(std::move(operation.work), end);
  more.notify_one();
}

void Stream::push(const std::vector<Operation>& operations, Work work) {
  std::lock_guard lock(mutex);
  queue.emplace_back(std::move(work), settle(*this, operations));
  more.notify_one();
}

bool Stream::push_point(uint64_t not_before, Work work, uint64_t* comes) {
  std::lock_guard lock(mutex);
  if (capturing) return false;
  *comes = settle_point(*this, not_before);
  queue.emplace_back(std::move(work), *comes);
  more.notify_one();
  return true;
}

void Stream::wait() {
  uint64_t end;
  {
    std::unique_lock lock(mutex);
    end = until;
    has_come(end, false);  // it is asked for from here on
    idle.wait(lock, [&] { return queue.empty() && !busy; });
  }
  await(*device, end);
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

// A graph has no points in time, as ours needs none there.
CUresult refuse_in_capture(const char* call) {
  return complain(std::string(call) + " on a stream that captures is not there"), CUDA_ERROR_NOT_SUPPORTED;
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
  uint64_t record, time, comes;
  {
    std::lock_guard lock(event->mutex);
    record = event->recorded;
    time = event->time;
  }
  const auto work = [=] { return reach(device, *event, record), CUDA_SUCCESS; };
  return stream->push_point(time, work, &comes) ? CUDA_SUCCESS : refuse_in_capture("cuStreamWaitEvent");
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
  std::lock_guard lock(event->mutex);  // for as long as the stream must not come to it
  const uint64_t record = event->recorded + 1;
  const auto work = [=] {
    std::lock_guard lock(event->mutex);
    event->done = record;
    if (!is_timed()) event->time = real_time();
    event->reached.notify_all();
    return CUDA_SUCCESS;
  };
  uint64_t comes;
  if (!stream->push_point(0, work, &comes)) return refuse_in_capture("cuEventRecord");
  event->recorded = record;
  if (is_timed()) event->time = comes;
  return CUDA_SUCCESS;
}

ROTA_DRIVER_CALL cuEventQuery(CUevent handle) {
  Device* device;
  std::shared_ptr<Event> event;
  if (CUresult result = find(handle, device, event)) return result;
  std::lock_guard lock(event->mutex);
  return has_come(event->time, event->done >= event->recorded) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

ROTA_DRIVER_CALL cuEventSynchronize(CUevent handle) {
  Device* device;
  std::shared_ptr<Event> event;
  if (CUresult result = find(handle, device, event)) return result;
  uint64_t record, time;
  {
    std::lock_guard lock(event->mutex);
    record = event->recorded;
    time = event->time;
  }
  has_come(time, false);  // it is asked for from here on
  reach(device, *event, record);
  await(*device, time);
  return device->error;
}

ROTA_DRIVER_CALL cuEventElapsedTime_v2(float* milliseconds, CUevent from_handle, CUevent to_handle) {
  Device* device;
  std::shared_ptr<Event> from, to;
  if (CUresult result = find(from_handle, device, from)) return result;
  if (CUresult result = find(to_handle, device, to)) return result;
  std::scoped_lock lock(from->mutex, to->mutex);
  if (!from->recorded || !to->recorded) return CUDA_ERROR_INVALID_HANDLE;
  const bool come = has_come(from->time, from->done >= from->recorded) && has_come(to->time, to->done >= to->recorded);
  if (!come) return CUDA_ERROR_NOT_READY;
  *milliseconds = static_cast<float>((static_cast<double>(to->time) - static_cast<double>(from->time)) / 1e6);
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
  stream->push(graph->operations, [graph] {
    for (const Operation& operation : graph->operations)
      if (CUresult result = operation.work()) return result;
    return CUDA_SUCCESS;
  });
  return CUDA_SUCCESS;
}
