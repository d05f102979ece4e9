/* causal_segments.inl: more threads than heads. The chunks of a head are cut into segments for several tasks.
 *
 * A segment begins with a state, so first the state alone is carried along, without outputs: each feature's by itself,
 * which is why several tasks can share that, too. Every number is made by the same operations in the same order as on
 * one thread. */

struct CausalSegments {
  const regard_causal_scan &p;
  const int64_t rows, padded, chunks, segments, each; /* each: chunks of a segment */
  float *states = nullptr; /* before each segment but the first, or behind all but the last */

  CausalSegments(const regard_causal_scan &problem, int64_t of_row)
      : p(problem),
        rows(problem.batch * problem.heads),
        padded(of_row),
        chunks((problem.length + kBlock - 1) / kBlock),
        segments(wanted()),
        each(chunks > 0 ? (chunks + segments - 1) / segments : 1) {}

  int64_t wanted() const {
    const int64_t idle = rows > 0 ? p.threads / rows : 1, most = chunks / 4;
    const int64_t some = idle < most ? idle : most;
    return some > 1 ? some : 1;
  }

  int64_t first(int64_t segment) const { return segment * each < chunks ? segment * each : chunks; }

  bool allocate() {
    if (segments == 1) return true;
    states = (float *)aligned_alloc(64, (size_t)(rows * segments * state_size()) * 4);
    return states != nullptr;
  }

  /* S, z and the scale, up to a multiple of 64 bytes. */
  int64_t state_size() const { return (p.features * (padded + 1) + 16) / 16 * 16; }
  float *state_of(int64_t row, int64_t segment) const { return states + (row * segments + segment) * state_size(); }

  Part part(const CausalChunk &chunk, int64_t block) const {
    const int64_t all = chunk.whole().count, size = (all + segments - 1) / segments;
    const int64_t from = block * size < all ? block * size : all;
    return {from, from + size < all ? size : all - from};
  }

  /* A part of the chunk's state to or from the one that is kept. */
  void keep(const CausalChunk &c, const Part &part, int64_t row, int64_t segment) const {
    float *to = state_of(row, segment);
    for (int64_t again = 0; again <= p.opposites; ++again) {
      const int64_t from = part.first + again * c.half;
      memcpy(to + from * padded, c.state + from * padded, (size_t)(part.count * padded) * 4);
      memcpy(to + p.features * padded + from, c.sums + from, (size_t)part.count * 4);
    }
    if (part.first == 0) to[p.features * (padded + 1)] = c.scale;
  }

  void take(CausalChunk *c, int64_t row, int64_t segment) const {
    const float *from = state_of(row, segment);
    memcpy(c->state, from, (size_t)(p.features * padded) * 4);
    memcpy(c->sums, from + p.features * padded, (size_t)p.features * 4);
    c->scale = from[p.features * (padded + 1)];
  }
};

/* The state before each segment. */
struct CausalStates {
  const CausalSegments &s;
  int status = REGARD_OK;

  static void run_part(void *self, int64_t task) { ((CausalStates *)self)->part(task); }

  int run() {
    if (s.segments > 1) regard::for_each_task(s.p.threads, s.rows * s.segments, run_part, this);
    return status;
  }

  void part(int64_t task) {
    const int64_t row = task / s.segments;
    CausalChunk chunk(s.p);
    if (!chunk.allocate()) return __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
    const Part part = s.part(chunk, task % s.segments);
    chunk.begin(row);
    chunk.load_first_state();
    for (int64_t segment = 1; segment < s.segments; ++segment) {
      for (int64_t at = s.first(segment - 1); at < s.first(segment); ++at) {
        chunk.take(at * kBlock);
        chunk.load_features(s.p.key, chunk.key, part);
        chunk.load_weights();
        chunk.read_keys(part);
      }
      s.keep(chunk, part, row, segment);
    }
  }
};
