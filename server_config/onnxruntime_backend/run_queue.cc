#include "run_queue.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace onnx_backend {

namespace {

// Smaller joint runs are not worth another core: a ResNet-18 of width 16 takes 1.31, 1.30, 1.23, 1.15 and 1.10 ms a row in runs of 1, 2, 4,
// 8 and 16 rows. Without a least number, eight waiting rows would become runs of 4, 2, 1 and 1.
constexpr int64_t kWorthJoining = 4;

struct CpuSet {
  explicit CpuSet(size_t count) : size(CPU_ALLOC_SIZE(count)), set(CPU_ALLOC(count)) {
    if (set == nullptr) throw std::bad_alloc();
    CPU_ZERO_S(size, set);
  }
  ~CpuSet() { CPU_FREE(set); }
  CpuSet(const CpuSet&) = delete;
  CpuSet& operator=(const CpuSet&) = delete;

  const size_t size;  // bytes
  cpu_set_t* const set;
};

std::vector<int> available_cores() {
  // The kernel refuses a set that is too small for all cores of the machine.
  for (size_t count = 1024;; count *= 2) {
    const CpuSet allowed(count);
    if (sched_getaffinity(0, allowed.size, allowed.set) != 0) {
      if (errno != EINVAL || count > 1 << 20) throw std::system_error(errno, std::generic_category(), "sched_getaffinity");
      continue;
    }
    std::vector<int> cores;
    for (size_t core = 0; core < count; ++core) {
      if (CPU_ISSET_S(core, allowed.size, allowed.set)) cores.push_back(static_cast<int>(core));
    }
    return cores;
  }
}

// The kernel may leave two busy threads on one core and the other core idle for several milliseconds, longer than a run takes.
void pin(std::thread& thread, int core) {
  const CpuSet only(static_cast<size_t>(core) + 1);
  CPU_SET_S(static_cast<size_t>(core), only.size, only.set);
  const int error = pthread_setaffinity_np(thread.native_handle(), only.size, only.set);
  if (error != 0) {
    log(TRITONSERVER_LOG_WARN, "a thread cannot be bound to core " + std::to_string(core) +
                                   ", so that runs may take longer: " + std::generic_category().message(error));
  }
}

// `struct sched_attr` of sched_setattr(2), which older C libraries do not declare.
struct SchedulingAttributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime_ns;
  uint64_t deadline_ns;
  uint64_t period_ns;
};

// A run takes longer than any other work of the server. With a long time slice, the calling thread gets its share of the core in fewer and
// longer pieces, and threads that wake up (front ends, the load of a model) do not wait for the end of a run. Linux has that since 6.12,
// for slices of up to 100 ms; older kernels ignore it.
void lengthen_time_slice() {
  SchedulingAttributes attributes{};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) == 0) {
    if (attributes.policy != SCHED_OTHER) return;  // the operator's choice
    attributes.runtime_ns = 100'000'000;
    if (syscall(SYS_sched_setattr, 0, &attributes, 0) == 0) return;
  }
  log(TRITONSERVER_LOG_WARN,
      "a thread cannot get longer time slices, so that edits may take longer: " + std::generic_category().message(errno));
}

}  // namespace

RunQueue::RunQueue(DelayedErrors& errors) : errors_(errors), cores_(available_cores()) {
  try {
    threads_.reserve(cores_.size());
    for (const int core : cores_) pin(threads_.emplace_back([this] { work(); }), core);
  } catch (...) {
    stop();
    throw;
  }
}

RunQueue::~RunQueue() { stop(); }

void RunQueue::stop() noexcept {
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    stopping_ = true;
  }
  can_start_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void RunQueue::add(std::list<Request>& requests) noexcept {
  if (requests.empty()) return;
  const Model& model = requests.front().model();
  Model::Backlog& backlog = requests.front().model().backlog();
  {
    std::unique_lock<std::mutex> lock(mutex_);
    backlog.has_room.wait(lock, [&] { return backlog.rows < model.max_joined_rows(); });
    for (const Request& request : requests) backlog.rows += request.rows(), waiting_rows_ += request.rows();
    waiting_.splice(waiting_.end(), requests);
    if (!can_start()) return;
  }
  can_start_.notify_one();
}

bool RunQueue::can_start() const {
  return !waiting_.empty() && (busy_cores_ == 0 || busy_cores_ + waiting_.front().model().threads() <= cores_.size());
}

// The oldest request, and those that can join it, up to the share of one core in all that waits (but see kWorthJoining): with more, other
// cores would have nothing to run.
Group RunQueue::take() {
  Group group;
  const Request& first = waiting_.front();
  Model& model = first.model();
  const auto runs_at_a_time = static_cast<int64_t>(std::max<size_t>(1, cores_.size() / model.threads()));
  const int64_t share = (waiting_rows_ + runs_at_a_time - 1) / runs_at_a_time;
  const int64_t most = std::min(std::max(share, kWorthJoining), model.max_joined_rows());
  int64_t rows = 0;
  for (auto request = waiting_.begin(); request != waiting_.end();) {
    const auto next = std::next(request);
    if (group.empty() || (rows + request->rows() <= most && first.can_join(*request))) {
      rows += request->rows();
      group.splice(group.end(), waiting_, request);
    }
    request = next;
  }
  waiting_rows_ -= rows;
  model.backlog().rows -= rows;
  model.backlog().has_room.notify_all();  // under the lock: once the group is answered, the model may be unloaded
  return group;
}

void RunQueue::work() noexcept {
  lengthen_time_slice();
  std::vector<Scratch> scratch;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    can_start_.wait(lock, [this] { return stopping_ || can_start(); });
    if (stopping_) return;
    Group group = take();
    const size_t threads = group.front().model().threads();
    busy_cores_ += threads;
    const bool another = can_start();
    lock.unlock();
    if (another) can_start_.notify_one();
    errors_.add(answer(std::move(group), scratch));
    lock.lock();
    busy_cores_ -= threads;
  }
}

}  // namespace onnx_backend
