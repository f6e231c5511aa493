// Threads that work on one op after the other and sleep in between: the machine is shared, so nobody spins for long.
#pragma once

#include <cstdint>

namespace kd {

// Work is cut into parts, [0, num_parts). Each thread does its own, which are side by side, and then those that others have not begun, so
// that one which the system has put aside holds up nobody. A part's result does not depend on who computes it (kernels.h, rule 1).
using Part = void (*)(void* work, int part, int thread);

// The first of the parts that thread `thread` of so many has for its own.
inline int first_part(int thread, int num_threads, int num_parts) {
  return static_cast<int>(static_cast<int64_t>(num_parts) * thread / num_threads);
}

class Threads {
 public:
  // `cpus`: where thread i may run, -1 or null: anywhere. The caller of `run` is thread 0. Fewer threads, where the system has no more.
  Threads(int num_threads, const int32_t* cpus);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  int count() const;
  // Return when all parts are done. They wait for each other for a few microseconds awake, then asleep. One caller at a time; more than
  // 65535 parts are done by the caller alone.
  void run(Part part, void* work, int num_parts);

 private:
  struct State;
  State* state_;
};

}  // namespace kd
