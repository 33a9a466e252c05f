#include "drain.h"

#include <semaphore.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "failure.h"

namespace onnx_backend {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// All answers count as sent when nothing has run for this long.
constexpr milliseconds kQuiet{250};
// The time that the last runs get once later requests are refused.
constexpr milliseconds kLastRuns{4000};
constexpr milliseconds kPoll{10};

enum class Refused { none, new_requests, all };

// Static, without destructors: executions on other threads use them until the process ends. Sequentially consistent, unlike the flag in
// model.h: an execution counts itself and then reads `refusal`, the drain sets `refusal` and then reads the count, and one of them must see
// the other.
std::atomic<Refused> refusal{Refused::none};
std::atomic<int> running{0};
std::atomic<Clock::rep> last_end{0};
sem_t drain_requested;
std::atomic<bool> cancelled{false};

void on_signal(int) {
  const int saved = errno;
  sem_post(&drain_requested);
  errno = saved;
}

bool quiet_since(Clock::time_point begin) {
  const Clock::time_point end{Clock::duration(last_end.load())};
  return running.load() == 0 && Clock::now() - std::max(begin, end) >= kQuiet;
}

void wait_until_quiet(milliseconds limit) {
  const auto begin = Clock::now();
  while (!quiet_since(begin) && Clock::now() - begin < limit) std::this_thread::sleep_for(kPoll);
}

void drain(std::chrono::seconds limit) {
  while (sem_wait(&drain_requested) != 0) {}
  if (cancelled.load()) return;
  log(TRITONSERVER_LOG_INFO, "draining: requests in flight are answered");
  wait_until_quiet(limit);
  refusal.store(Refused::new_requests);
  wait_until_quiet(kLastRuns);
  log(TRITONSERVER_LOG_INFO, running.load() == 0 ? "drained" : "not drained in time: running requests are abandoned");
  _exit(0);
}

}  // namespace

Execution::Execution(bool last_step) {
  ++running;  // first: refuse_at_exit() waits for executions that may not have seen the refusal
  const Refused now = refusal.load();
  refused_ = now == Refused::all || (now == Refused::new_requests && !last_step);
  if (refused_) --running;
}

Execution::~Execution() {
  if (refused_) return;
  last_end.store(Clock::now().time_since_epoch().count());
  --running;
}

DrainOnSignal::DrainOnSignal(std::chrono::seconds limit) {
  sem_init(&drain_requested, 0, 0);
  cancelled.store(false);
  thread_ = std::thread(drain, limit);
  struct sigaction action{};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
}

DrainOnSignal::~DrainOnSignal() {
  signal(SIGUSR1, SIG_DFL);
  cancelled.store(true);
  sem_post(&drain_requested);
  thread_.join();
}

void refuse_at_exit() {
  std::atexit([] {
    refusal.store(Refused::all);
    const auto begin = Clock::now();
    while (running.load() > 0 && Clock::now() - begin < kLastRuns) std::this_thread::sleep_for(kPoll);
  });
}

}  // namespace onnx_backend
