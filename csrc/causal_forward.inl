/* causal_forward.inl: the causal sum of features, chunk by chunk. A task is a segment of one head of one sample. */

struct CausalForward {
  const regard_causal_scan &p;
  const regard_causal_scan_results &r;
  CausalSegments segments;
  int status = REGARD_OK;

  CausalForward(const regard_causal_scan &problem, const regard_causal_scan_results &results)
      : p(problem), r(results), segments(problem, CausalChunk(problem).padded) {}

  static void run_segment(void *self, int64_t task) { ((CausalForward *)self)->segment(task); }

  int run() {
    if (!segments.allocate()) return REGARD_NO_MEMORY;
    status = CausalStates{segments}.run();
    if (status == REGARD_OK) regard::for_each_task(p.threads, segments.rows * segments.segments, run_segment, this);
    free(segments.states);
    return status;
  }

  void segment(int64_t task) {
    const int64_t row = task / segments.segments, segment = task % segments.segments;
    CausalChunk chunk(p);
    float *output = nullptr;
    if (!chunk.allocate(&output, p.value_dim)) return __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
    chunk.begin(row);
    if (segment == 0)
      chunk.load_first_state();
    else
      segments.take(&chunk, row, segment);
    for (int64_t at = segments.first(segment); at < segments.first(segment + 1); ++at) {
      chunk.take(at * kBlock);
      attend(&chunk, output, r.normaliser + row * p.length + chunk.start);
    }
    if (segment + 1 < segments.segments) return;
    chunk.save_state(r.values, r.keys);
    r.scale[row] = chunk.scale == kEmptyScale ? 0 : chunk.scale;
  }

  void attend(CausalChunk *c, float *output, float *normaliser) const {
    c->load_features(p.query, c->query, c->whole());
    c->load_features(p.key, c->key, c->whole());
    c->load_weights();
    c->products_by_key(c->key, c->query, p.features);
    c->weigh_by_key(nullptr);
    c->product(c->state, 1, c->padded, p.value_dim, p.features, c->query, output);
    c->scale_lanes(output, p.value_dim, c->past);
    c->load_values(p.value);
    c->add_keys(c->values, 1, c->padded, p.value_dim, output);
    for (int64_t lane = 0; lane < c->lanes(); lane += CausalChunk::width) divide(*c, output, lane);
    memcpy(normaliser, c->level, (size_t)c->count * 4);
    tile_to_rows(output, c->count, p.value_dim, c->rows(r.output), r.output.row_stride);
    c->read_keys(c->whole());
  }

  /* By the normalisers, which then stand where the levels did. */
  void divide(const CausalChunk &c, float *output, int64_t lane) const {
    Floats total{};
    for (int64_t f = 0; f < p.features; ++f)
      total = multiply_add(load(c.query + f * kBlock + lane), broadcast(c.sums[f]), total);
    total = total * load(c.past + lane);
    const int64_t keys = lane + CausalChunk::width < c.count ? lane + CausalChunk::width : c.count;
    for (int64_t j = 0; j < keys; ++j) total = total + load(c.weights + j * kBlock + lane);
    total = larger(broadcast(kLeastSum), total); /* NaN stays NaN */
    store(c.level + lane, total);
    for (int64_t i = 0; i < p.value_dim; ++i)
      store(output + i * kBlock + lane, load(output + i * kBlock + lane) / total);
  }
};

int causal_scan_forward(const regard_causal_scan *p, const regard_causal_scan_results *r) {
  return CausalForward(*p, *r).run();
}
