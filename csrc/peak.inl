/* peak.inl: how fast this machine multiplies and adds when nothing is loaded or stored. What a kernel's speed is a
 * fraction of. */

template <class Core>
struct Peak {
  typedef typename Core::Scalar Scalar;
  static constexpr int chains = 12; /* enough to hide the latency on two pipes, few enough for 16 registers */
  double seconds;
  double *rates; /* of each task */

  static void run_task(void *self, int64_t task) { ((const Peak *)self)->measure(task); }

  static double now() {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
  }

  void measure(int64_t task) const {
    constexpr int64_t rounds = 4096;
    alignas(64) typename Core::Unit ones[kVectorBytes / sizeof(typename Core::Unit)] = {};
    typename Core::Operand left = Core::operand(ones), right = left;
    typename Core::Vector sums[chains] = {};
    const double start = now();
    double elapsed;
    int64_t done = 0;
    do {
      for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < chains; ++i) {
          sums[i] = Core::step(sums[i], left, right);
#if defined(__x86_64__)
          __asm__ volatile("" : "+v"(sums[i])); /* or the loop would be found to do nothing */
#else
          __asm__ volatile("" : "+w"(sums[i]));
#endif
        }
      }
      done += rounds;
      elapsed = now() - start;
    } while (elapsed < seconds);
    rates[task] = 2.0 * Core::step_width * chains * Simd<Scalar>::width * (double)done / elapsed;
  }
};

template <class Core>
double peak_of(int32_t threads, double seconds) {
  constexpr int32_t most = 1024;
  double rates[most], sum = 0;
  if (threads < 1 || threads > most) return 0;
  Peak<Core> job{seconds, rates};
  regard::for_each_task(threads, threads, Peak<Core>::run_task, &job);
  for (int32_t i = 0; i < threads; ++i) sum += rates[i];
  return sum;
}
