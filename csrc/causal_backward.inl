/* causal_backward.inl: gradients of the causal sum of features. A task is a segment of one head of one sample.
 *
 * With g_i = d out_i / normaliser_i and t_i = -g_i . out_i the gradient of q_i . k_j is pair_ij (g_i . v_j + t_i). What
 * a query gets needs the state before its chunk, and what a key and a value get needs the gradient of the state behind
 * it: so the text is read twice, forwards and backwards, and no state is kept but the one at hand. */

struct CausalBackward {
  static constexpr int width = CausalChunk::width;

  const regard_causal_scan &p;
  const regard_causal_scan_gradients &a;
  CausalSegments segments;
  float *scales = nullptr; /* of the state before each chunk, row by row */
  int status = REGARD_OK;

  CausalBackward(const regard_causal_scan &problem, const regard_causal_scan_gradients &arguments)
      : p(problem), a(arguments), segments(problem, CausalChunk(problem).padded) {}

  /* Tiles beside the chunk's own. */
  struct Room {
    float *of_features, *of_values; /* gradients of features; of values */
    float *grads, *values, *output; /* g, v and out */
    float *total;                   /* t */
  };

  static void run_queries(void *self, int64_t task) { ((CausalBackward *)self)->read_forwards(task); }
  static void run_states(void *self, int64_t task) { ((CausalBackward *)self)->carry_backwards(task); }
  static void run_keys(void *self, int64_t task) { ((CausalBackward *)self)->read_backwards(task); }

  int run() {
    const int64_t tasks = segments.rows * segments.segments;
    scales = (float *)malloc((size_t)(segments.rows * segments.chunks + 1) * 4);
    if (!scales || !segments.allocate()) {
      free(scales);
      return REGARD_NO_MEMORY;
    }
    status = CausalStates{segments}.run();
    if (status == REGARD_OK) regard::for_each_task(p.threads, tasks, run_queries, this);
    if (status == REGARD_OK && segments.segments > 1) regard::for_each_task(p.threads, tasks, run_states, this);
    if (status == REGARD_OK) regard::for_each_task(p.threads, tasks, run_keys, this);
    free(segments.states);
    free(scales);
    return status;
  }

  bool allocate(CausalChunk *chunk, Room *room) {
    float *tile = nullptr;
    if (!chunk->allocate(&tile, p.features + 4 * p.value_dim + 1)) {
      __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
      return false;
    }
    room->of_features = tile;
    room->of_values = tile += p.features * kBlock;
    room->grads = tile += p.value_dim * kBlock;
    room->values = tile += p.value_dim * kBlock;
    room->output = tile += p.value_dim * kBlock;
    room->total = tile + p.value_dim * kBlock;
    return true;
  }

  /* ------------------------------------------------------------------------------------ the two readings */

  void read_forwards(int64_t task) {
    const int64_t row = task / segments.segments, segment = task % segments.segments;
    CausalChunk chunk(p);
    Room room;
    if (!allocate(&chunk, &room)) return;
    chunk.begin(row);
    if (segment == 0)
      chunk.load_first_state();
    else
      segments.take(&chunk, row, segment);
    for (int64_t at = segments.first(segment); at < segments.first(segment + 1); ++at) {
      scales[row * segments.chunks + at] = chunk.scale;
      load_chunk(&chunk, room, at, chunk.whole());
      of_queries(&chunk, room);
    }
  }

  void read_backwards(int64_t task) {
    const int64_t row = task / segments.segments, segment = task % segments.segments;
    CausalChunk chunk(p);
    Room room;
    if (!allocate(&chunk, &room)) return;
    chunk.begin(row);
    if (segment + 1 == segments.segments)
      chunk.load_state(a.grad_values, a.grad_keys, 0);
    else
      segments.take(&chunk, row, segment);
    for (int64_t at = segments.first(segment + 1) - 1; at >= segments.first(segment); --at) {
      chunk.scale = scales[row * segments.chunks + at];
      load_chunk(&chunk, room, at, chunk.whole());
      of_keys(&chunk, room);
      carry(&chunk, room, chunk.whole());
    }
    if (segment == 0) chunk.save_state(a.grad_values_before, a.grad_keys_before);
  }

  /* The gradient of the state behind each segment but the last: of some features. */
  void carry_backwards(int64_t task) {
    const int64_t row = task / segments.segments;
    CausalChunk chunk(p);
    Room room;
    if (!allocate(&chunk, &room)) return;
    const Part part = segments.part(chunk, task % segments.segments);
    chunk.begin(row);
    chunk.load_state(a.grad_values, a.grad_keys, 0);
    for (int64_t segment = segments.segments - 1; segment > 0; --segment) {
      for (int64_t at = segments.first(segment + 1) - 1; at >= segments.first(segment); --at) {
        chunk.scale = scales[row * segments.chunks + at];
        load_chunk(&chunk, room, at, part);
        carry(&chunk, room, part);
      }
      segments.keep(chunk, part, row, segment - 1);
    }
  }

  /* ------------------------------------------------------------------------------------------ one chunk */

  /* What all of them need of a chunk. */
  void load_chunk(CausalChunk *c, const Room &room, int64_t at, const Part &part) const {
    c->take(at * kBlock);
    c->load_features(p.query, c->query, part);
    c->load_features(p.key, c->key, part);
    c->load_weights();
    rows_to_tile(c->rows(p.value), p.value.row_stride * 4, c->count, p.value_dim, room.values);
    rows_to_tile(c->rows(a.output), a.output.row_stride * 4, c->count, p.value_dim, room.output);
    rows_to_tile(c->rows(a.grad_output), a.grad_output.row_stride * 4, c->count, p.value_dim, room.grads);
    alignas(64) float normaliser[kBlock];
    for (int64_t i = 0; i < kBlock; ++i)
      normaliser[i] = i < c->count ? a.normaliser[c->row() * p.length + c->start + i] : 1;
    for (int64_t lane = 0; lane < c->lanes(); lane += width) {
      const Floats factor = 1.0f / load(normaliser + lane);
      Floats sum{};
      for (int64_t i = 0; i < p.value_dim; ++i) {
        const Floats grad = load(room.grads + i * kBlock + lane) * factor;
        store(room.grads + i * kBlock + lane, grad);
        sum = multiply_add(grad, load(room.output + i * kBlock + lane), sum);
      }
      store(room.total + lane, -sum);
    }
  }

  void of_queries(CausalChunk *c, const Room &room) const {
    c->products_by_key(room.values, room.grads, p.value_dim);
    c->weigh_by_key(room.total);
    c->scale_lanes(room.grads, p.value_dim, c->past);
    c->scale_lanes(room.total, 1, c->past);
    c->product(c->state, c->padded, 1, p.features, p.value_dim, room.grads, room.of_features);
    c->add_keys(c->key, kBlock, 1, p.features, room.of_features);
    add_outer(*c, c->sums, room.total, room.of_features);
    through_features(*c, c->query, room.of_features, nullptr);
    write_tokens(c, room.of_features, a.grad_query);
    c->read_keys(c->whole());
  }

  void of_keys(CausalChunk *c, const Room &room) const {
    c->products_by_query(c->query, c->key, p.features);
    c->weigh_by_query(nullptr);
    c->product(c->state, 1, c->padded, p.value_dim, p.features, c->key, room.of_values);
    c->scale_lanes(room.of_values, p.value_dim, c->last);
    c->add_queries(room.grads, kBlock, 1, p.value_dim, room.of_values);
    tile_to_rows(room.of_values, c->count, p.value_dim, c->rows(a.grad_value), a.grad_value.row_stride);

    c->products_by_query(room.grads, room.values, p.value_dim);
    c->weigh_by_query(room.total);
    c->scale_lanes(room.values, p.value_dim, c->last);
    c->product(c->state, c->padded, 1, p.features, p.value_dim, room.values, room.of_features);
    c->add_queries(c->query, kBlock, 1, p.features, room.of_features);
    add_outer(*c, c->sums, c->last, room.of_features);
    alignas(64) float of_log[kBlock];
    through_features(*c, c->key, room.of_features, of_log);
    if (p.log_weight.data) memcpy(a.grad_log + c->row() * p.length + c->start, of_log, (size_t)c->count * 4);
    write_tokens(c, room.of_features, a.grad_key);
  }

  /* The gradient of the state from behind the chunk to before it. Changes g and t. */
  void carry(CausalChunk *c, const Room &room, const Part &part) const {
    c->scale_lanes(room.grads, p.value_dim, c->past);
    c->scale_lanes(room.total, 1, c->past);
    tile_to_rows(room.grads, c->count, p.value_dim, c->values, c->padded);
    for (int64_t i = c->count; i < c->lanes(); ++i) room.total[i] = 0;
    c->add_to_state(c->query, c->values, room.total, part);
  }

  void add_outer(const CausalChunk &c, const float *of_feature, const float *of_token, float *tile) const {
    for (int64_t f = 0; f < p.features; ++f)
      for (int64_t lane = 0; lane < c.lanes(); lane += width)
        store(tile + f * kBlock + lane,
              multiply_add(broadcast(of_feature[f]), load(of_token + lane), load(tile + f * kBlock + lane)));
  }

  /* From gradients of features to those of their logs, where they are exponentials: both parts of a direction and its
   * opposite in one. `sums` gets the sum over all features. */
  void through_features(const CausalChunk &c, const float *features, float *tile, float *sums) const {
    for (int64_t lane = 0; lane < c.lanes(); lane += width) {
      Floats sum{};
      for (int64_t f = 0; f < (p.projection ? c.half : p.features); ++f) {
        float *at = tile + f * kBlock + lane;
        const Floats one = load(at) * load(features + f * kBlock + lane);
        sum = sum + one;
        if (!p.projection) continue;
        Floats other{};
        if (p.opposites) other = load(at + c.half * kBlock) * load(features + (c.half + f) * kBlock + lane);
        sum = sum + other;
        store(at, one - other);
      }
      if (sums) store(sums + lane, sum);
    }
  }

  /* Rows of a query or key from the gradients of its features, or of their logs. */
  void write_tokens(CausalChunk *c, const float *tile, const regard_rows &to) const {
    if (p.projection) {
      c->product((const float *)p.projection, 1, p.width, p.width, c->half, tile, c->tokens);
      tile = c->tokens;
    }
    tile_to_rows(tile, c->count, p.projection ? p.width : p.features, c->rows(to), to.row_stride);
  }
};

int causal_scan_backward(const regard_causal_scan *p, const regard_causal_scan_gradients *a) {
  return CausalBackward(*p, *a).run();
}
