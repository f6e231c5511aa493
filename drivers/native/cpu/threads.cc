// See threads.h.
//
//     ranges    | generation 32 | end 16 | next part 16 |         of each thread; one word, so that a part can only be taken of its own run
//     pending   parts of this run that are not done
//     wake      the generation again, 32 bits: what all look at for the next run, and sleepers wait on
//
// Each thread has a run of consecutive parts of its own, so that it reads memory from front to back, and takes them from the front. Who has
// done its own takes from the end of another's.
//
// A run writes `part` and `work`, then the ranges (release), then `wake`. A thread reads a range (acquire), `part` and `work`, and takes a
// part by changing the range, if nobody else changed it meanwhile. If that succeeds, the run had a part left at that moment, so it had not
// ended, so `part` and `work` were still its own: a thread that was put aside between reading and taking fails, and looks again.
//
// Who has nothing to do spins for SPIN_NS, in which ops follow each other, and sleeps then. Sleepers are counted, so that a run wakes
// nobody where nobody sleeps; counter and word are in sequential order, so that one of the two sides sees the other.
//
// On a machine with other work the system puts a thread aside with a part in its hands, for milliseconds, and all others wait. Such a wait
// shows in the time that the others were running, which is shorter. What is lost by it, of all threads' time, is summed up over a window;
// where that is more than one thread is worth, the caller goes on with one less for a while, so that those that are left have a processor
// each. `num_active` counts the threads that take parts; the others sleep on it.

#include "threads.h"

#include <climits>
#include <ctime>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <vector>

namespace kd {
namespace {

constexpr int64_t SPIN_NS = 30000;
constexpr int SPINS_PER_LOOK = 16;  // pauses between looks at the clock: 0.2 to 0.8 us
constexpr int MAX_PARTS = 0xffff;
constexpr int64_t STALL_NS = 300000;  // more than an interrupt takes, less than a neighbour's turn
constexpr int64_t MIN_WINDOW_NS = 20000000, MAX_WINDOW_NS = 100000000;
constexpr int64_t REST_NS = 100000000;
constexpr double WORTH = 0.8;  // of a thread: two that run half of the time together do less than one alone

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now_ns(clockid_t clock = CLOCK_MONOTONIC) {
  timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

template <typename Word>
void sleep_while(std::atomic<Word>& word, Word value) {
  static_assert(sizeof(word) == 4, "a futex is 32 bits");
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

template <typename Word>
void wake_all(std::atomic<Word>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Spins until `is_over` answers true, for SPIN_NS at most; answers whether it did.
template <typename Condition>
bool spin(Condition is_over) {
  for (int64_t end = 0;;) {
    for (int idx = 0; idx < SPINS_PER_LOOK; idx++) {
      if (is_over()) return true;
      pause();
    }
    int64_t now = now_ns();
    if (end == 0) end = now + SPIN_NS;
    if (now >= end) return false;
  }
}

void run_on(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);  // a wish: where it is refused, the thread runs anywhere
}

}  // namespace

struct alignas(64) Range {  // parts of one thread that nobody has taken
  std::atomic<uint64_t> word{0};

  static uint64_t of(uint32_t generation, uint64_t first, uint64_t end) {
    return static_cast<uint64_t>(generation) << 32 | end << 16 | first;
  }
  static int next(uint64_t word) { return word & 0xffff; }
  static int end(uint64_t word) { return word >> 16 & 0xffff; }
};

struct Threads::State {
  explicit State(int num_threads) : num_ranges(num_threads < 1 ? 1 : num_threads), ranges(new Range[num_ranges]) {}

  const int num_ranges;
  const std::unique_ptr<Range[]> ranges;
  alignas(64) std::atomic<Part> part{nullptr};
  std::atomic<void*> work{nullptr};
  alignas(64) std::atomic<int32_t> pending{0};
  std::atomic<bool> has_sleeping_caller{false};
  alignas(64) std::atomic<uint32_t> wake{0};
  std::atomic<int> num_sleepers{0};
  std::atomic<bool> is_closing{false};
  std::atomic<int32_t> num_active{1};
  std::vector<pthread_t> threads;
  int64_t rest_until_ns = 0, window_ns = 0, window_lost_ns = 0;  // the caller's

  // Takes and does parts of a range until there are none: the first ones, or where it is another's, the last ones.
  void work_off(Range& range, int thread, bool is_own) {
    uint64_t seen = range.word.load(std::memory_order_acquire);
    while (Range::next(seen) < Range::end(seen)) {
      Part do_part = part.load(std::memory_order_relaxed);
      void* of = work.load(std::memory_order_relaxed);
      uint64_t taken = is_own ? seen + 1 : seen - 0x10000;
      if (!range.word.compare_exchange_weak(seen, taken, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      do_part(of, is_own ? Range::next(seen) : Range::end(taken), thread);
      if (pending.fetch_sub(1, std::memory_order_seq_cst) == 1 && has_sleeping_caller.load(std::memory_order_seq_cst)) wake_all(pending);
      seen = range.word.load(std::memory_order_acquire);
    }
  }

  // Takes and does parts until there are none; answers the generation before which there are none.
  uint32_t work_off(int thread) {
    uint32_t generation = wake.load(std::memory_order_acquire);
    for (int idx = 0; idx < num_ranges; idx++) work_off(ranges[(thread + idx) % num_ranges], thread, idx == 0);
    return generation;
  }

  void wait_for_run_after(uint32_t done) {
    auto is_over = [&] {
      return wake.load(std::memory_order_relaxed) != done || is_closing.load(std::memory_order_relaxed);
    };
    if (spin(is_over)) return;
    num_sleepers.fetch_add(1, std::memory_order_seq_cst);
    while (wake.load(std::memory_order_seq_cst) == done && !is_closing.load(std::memory_order_seq_cst)) sleep_while(wake, done);
    num_sleepers.fetch_sub(1, std::memory_order_relaxed);
  }

  struct Seat {
    State* state;
    int thread, cpu;
  };

  static void* live(void* of) {
    Seat seat = *static_cast<Seat*>(of);
    delete static_cast<Seat*>(of);
    if (seat.cpu >= 0) run_on(seat.cpu);
    char name[16];
    snprintf(name, sizeof name, "kd-%d", seat.thread);
    pthread_setname_np(pthread_self(), name);
    State& state = *seat.state;
    while (!state.is_closing.load(std::memory_order_acquire)) {
      state.rest(seat.thread);
      state.wait_for_run_after(state.work_off(seat.thread));
    }
    return nullptr;
  }

  void publish(Part do_part, void* of, int num_parts) {
    uint32_t next = wake.load(std::memory_order_relaxed) + 1;
    int active = num_active.load(std::memory_order_relaxed);
    part.store(do_part, std::memory_order_relaxed);
    work.store(of, std::memory_order_relaxed);
    pending.store(num_parts, std::memory_order_relaxed);
    for (int thread = 0; thread < active; thread++) {
      int first = first_part(thread, active, num_parts), end = first_part(thread + 1, active, num_parts);
      ranges[thread].word.store(Range::of(next, first, end), std::memory_order_release);
    }
    wake.store(next, std::memory_order_seq_cst);
    if (num_sleepers.load(std::memory_order_seq_cst) > 0) wake_all(wake);
  }

  // Waits until this thread is one of those that take parts.
  void rest(int thread) {
    for (int32_t active; (active = num_active.load(std::memory_order_seq_cst)) <= thread && !is_closing.load(std::memory_order_seq_cst);)
      sleep_while(num_active, active);
  }

  void wait_for_others() {
    auto is_over = [&] { return pending.load(std::memory_order_acquire) == 0; };
    if (spin(is_over)) return;
    std::vector<int64_t> ran_ns = running_ns();
    int64_t began = now_ns(), most_ns = 0;
    wait_asleep();
    int64_t now = now_ns();
    if (now - began < STALL_NS) return;
    std::vector<int64_t> since_ns = running_ns();
    for (size_t idx = 0; idx < threads.size(); idx++)
      if (since_ns[idx] - ran_ns[idx] > most_ns) most_ns = since_ns[idx] - ran_ns[idx];
    if (now - began - most_ns >= STALL_NS) lose(began, now, now - began - most_ns);
  }

  // Notes what was lost by a wait, and lets a thread rest where it is too much.
  void lose(int64_t began, int64_t now, int64_t lost_ns) {
    if (began - window_ns > MAX_WINDOW_NS) window_ns = began, window_lost_ns = 0;
    window_lost_ns += lost_ns;
    int64_t window = now - window_ns;
    int32_t active = num_active.load(std::memory_order_relaxed);
    if (window < MIN_WINDOW_NS || active * static_cast<double>(window_lost_ns) < WORTH * window) return;
    num_active.store(active - 1, std::memory_order_relaxed);
    rest_until_ns = now + REST_NS;
    window_ns = 0;
  }

  // How long each thread was running so far.
  std::vector<int64_t> running_ns() const {
    std::vector<int64_t> times(threads.size(), 0);
    clockid_t clock;
    for (size_t idx = 0; idx < threads.size(); idx++)
      if (pthread_getcpuclockid(threads[idx], &clock) == 0) times[idx] = now_ns(clock);
    return times;
  }

  // Whether all but the caller rest. Lets one more thread take part when it has rested.
  bool are_resting() {
    int32_t active = num_active.load(std::memory_order_relaxed);
    if (active <= static_cast<int32_t>(threads.size()) && now_ns() >= rest_until_ns) {
      num_active.store(++active, std::memory_order_seq_cst);
      wake_all(num_active);
    }
    return active == 1;
  }

  void wait_asleep() {
    has_sleeping_caller.store(true, std::memory_order_seq_cst);
    for (int32_t left; (left = pending.load(std::memory_order_seq_cst)) != 0;) sleep_while(pending, left);
    has_sleeping_caller.store(false, std::memory_order_relaxed);
  }
};

Threads::Threads(int num_threads, const int32_t* cpus) : state_(new State(num_threads)) {
  for (int thread = 1; thread < num_threads; thread++) {
    State::Seat* seat = new State::Seat{state_, thread, cpus == nullptr ? -1 : cpus[thread]};
    pthread_t started;
    if (pthread_create(&started, nullptr, State::live, seat) != 0) {  // the system has none left: fewer do
      delete seat;
      break;
    }
    state_->threads.push_back(started);
  }
  state_->num_active.store(count(), std::memory_order_seq_cst);
  wake_all(state_->num_active);
}

Threads::~Threads() {
  state_->is_closing.store(true, std::memory_order_seq_cst);
  state_->wake.fetch_add(1, std::memory_order_seq_cst);
  state_->num_active.fetch_add(MAX_PARTS, std::memory_order_seq_cst);
  wake_all(state_->wake);
  wake_all(state_->num_active);
  for (pthread_t thread : state_->threads) pthread_join(thread, nullptr);
  delete state_;
}

int Threads::count() const { return static_cast<int>(state_->threads.size()) + 1; }

void Threads::run(Part part, void* work, int num_parts) {
  if (num_parts <= 1 || num_parts > MAX_PARTS || state_->threads.empty() || state_->are_resting()) {
    for (int idx = 0; idx < num_parts; idx++) part(work, idx, 0);
    return;
  }
  state_->publish(part, work, num_parts);
  state_->work_off(0);
  state_->wait_for_others();
}

}  // namespace kd

// For callers outside of the engine, who give parts of their own.

#define KD_ENTRY extern "C" __attribute__((visibility("default")))

KD_ENTRY kd::Threads* kd_threads_open(int num_threads, const int32_t* cpus) { return new kd::Threads(num_threads, cpus); }

KD_ENTRY void kd_threads_run(kd::Threads* threads, kd::Part part, void* work, int num_parts) { threads->run(part, work, num_parts); }

KD_ENTRY void kd_threads_close(kd::Threads* threads) { delete threads; }
