/* threads.h: how work is spread over cores, and the scratch memory of each. */
#ifndef REGARD_THREADS_H
#define REGARD_THREADS_H

#include <stddef.h>
#include <stdint.h>

namespace regard {

/* Runs work(context, task) for each task 0 .. tasks - 1 on at most `threads` threads, the caller's among them;
 * tasks start in this order, each on whichever thread is free. Returns when all are done. */
void for_each_task(int32_t threads, int64_t tasks, void (*work)(void *context, int64_t task), void *context);

/* At least `bytes` of memory for the calling thread, aligned to 64, or NULL. The next call takes it back; its
 * contents are undefined. */
void *thread_scratch(size_t bytes);

} // namespace regard
#endif
