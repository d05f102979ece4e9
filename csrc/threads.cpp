/* threads.cpp: torch's own OpenMP workers where the process has them, a pool of our own where not.
 *
 * Two pools on the same cores hurt: idle OpenMP workers spin for a while and hold a core that ours would need.
 * So where libgomp is already loaded (torch brings it) its GOMP_parallel is found by name at run time and nothing is
 * linked. Otherwise, and in a child after fork, where libgomp's workers are gone for good, a small pool of our own
 * runs.
 */
#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace regard {
namespace {

struct Job {
  void (*work)(void *, int64_t);
  void *context;
  int64_t tasks;
  std::atomic<int64_t> next{0};

  void run() {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(context, task);
  }
};

void run_job(void *job) { static_cast<Job *>(job)->run(); }

/* ------------------------------------------------------------------------------------ our own pool */

/* Worker i waits for a job that has room for it. One job at a time: a second caller runs its tasks alone. */
class Pool {
 public:
  void run(Job *job, int32_t threads) {
    std::unique_lock<std::mutex> busy(one_at_a_time_, std::try_to_lock);
    if (!busy.owns_lock()) return job->run();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int32_t>(started_) < threads - 1 && start_worker()) {
      }
      job_ = job;
      wanted_ = threads - 1 < started_ ? threads - 1 : started_;
      working_ = wanted_;
    }
    wake_.notify_all();
    job->run();
    std::unique_lock<std::mutex> lock(mutex_);
    working_ -= wanted_; /* who has not begun need not */
    wanted_ = 0;
    done_.wait(lock, [&] { return working_ == 0; });
    job_ = nullptr;
  }

 private:
  bool start_worker() {
    try {
      std::thread(&Pool::serve, this).detach();
    } catch (...) {
      return false;
    }
    ++started_;
    return true;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return wanted_ > 0; });
      --wanted_;
      Job *job = job_;
      lock.unlock();
      job->run();
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex one_at_a_time_, mutex_;
  std::condition_variable wake_, done_;
  Job *job_ = nullptr;
  int32_t started_ = 0, wanted_ = 0, working_ = 0;
};

std::atomic<Pool *> own_pool{nullptr};

Pool *pool() {
  Pool *found = own_pool.load();
  if (found) return found;
  Pool *fresh = new (std::nothrow) Pool; /* never freed: its threads outlive every caller */
  if (own_pool.compare_exchange_strong(found, fresh)) return fresh;
  delete fresh;
  return found;
}

/* -------------------------------------------------------------------------------- torch's OpenMP */

typedef void (*GompParallel)(void (*)(void *), void *, unsigned, unsigned);
std::atomic<GompParallel> gomp_parallel{nullptr};

#if !defined(_WIN32)
void after_fork_in_child() {
  gomp_parallel = nullptr;
  own_pool = nullptr; /* its threads did not come along */
}

struct FindOpenMp {
  FindOpenMp() {
    gomp_parallel = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    pthread_atfork(nullptr, nullptr, after_fork_in_child);
  }
};
#endif

} // namespace

void for_each_task(int32_t threads, int64_t tasks, void (*work)(void *, int64_t), void *context) {
#if !defined(_WIN32)
  static const FindOpenMp found;
#endif
  Job job{work, context, tasks};
  if (threads > tasks) threads = static_cast<int32_t>(tasks);
  if (threads <= 1) return job.run();
  if (GompParallel parallel = gomp_parallel.load()) return parallel(run_job, &job, static_cast<unsigned>(threads), 0);
  Pool *own = pool();
  if (own)
    own->run(&job, threads);
  else
    job.run();
}

namespace {
struct Scratch {
  void *memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { std::free(memory); }
};
thread_local Scratch scratch;
} // namespace

void *thread_scratch(size_t bytes) {
  if (scratch.bytes < bytes) {
    std::free(scratch.memory);
    const size_t rounded = (bytes + 4095) & ~static_cast<size_t>(4095);
    scratch.memory = std::aligned_alloc(64, rounded);
    scratch.bytes = scratch.memory ? rounded : 0;
  }
  return scratch.memory;
}

} // namespace regard
