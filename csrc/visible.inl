/* visible.inl: which keys a block of queries meets, as runs of keys of one kind.
 *
 * The mask's closed forms are looked at by their ends only: for each group of 16 queries the keys that some and that all
 * of them see. A run says which groups take part, and whether single pairs must still be masked. */

struct Run {
  int64_t first, end;           /* keys */
  int first_group, end_group;   /* of 16 queries */
  const int32_t *starts, *ends; /* of the rows, when masked by them; else NULL */
  const uint64_t *words;        /* of key `first`, when masked by them; else NULL */
  bool masked() const { return starts || words; }
};

/* The visible keys of each row of a block for one interval: [starts, ends), and their extremes for each group. */
struct RowRanges {
  alignas(64) int32_t starts[kBlock], ends[kBlock];
  int64_t some_first[kGroups], some_end[kGroups]; /* keys that a row of the group may see */
  int64_t all_first[kGroups], all_end[kGroups];   /* keys that all of them do */
};

REGARD_INLINE int64_t clamp_key(int64_t key, int64_t kv_len) { return key < 0 ? 0 : key > kv_len ? kv_len : key; }

struct Visible {
  const regard_problem &problem;
  int64_t batch, head, block; /* block of queries */
  int64_t rows;               /* queries in it */

  Visible(const regard_problem &p, int64_t b, int64_t h, int64_t i)
      : problem(p), batch(b), head(h), block(i), rows(p.q_len - i * kBlock < kBlock ? p.q_len - i * kBlock : kBlock) {}

  int groups() const { return (int)((rows + kGroup - 1) / kGroup); }

  /* Row ranges of the band and interval number `interval` (or none: -1). */
  void ranges(int64_t interval, RowRanges *r) const {
    const regard_mask &mask = problem.mask;
    const int32_t *starts = nullptr, *ends = nullptr;
    if (interval >= 0) {
      starts = mask.intervals + batch * mask.interval_batch_stride + head * mask.interval_head_stride +
               2 * interval * problem.q_len;
      ends = starts + problem.q_len;
    }
    for (int64_t lane = 0; lane < groups() * kGroup; ++lane) {
      const int64_t query = block * kBlock + (lane < rows ? lane : rows - 1), place = query + mask.offset;
      int64_t start = mask.before == REGARD_UNLIMITED ? 0 : clamp_key(place - mask.before, problem.kv_len);
      int64_t end = mask.after == REGARD_UNLIMITED ? problem.kv_len : clamp_key(place + mask.after + 1, problem.kv_len);
      if (starts && starts[query] > start) start = starts[query];
      if (ends && ends[query] < end) end = ends[query];
      if (start >= end) start = end = 0;
      r->starts[lane] = (int32_t)start;
      r->ends[lane] = (int32_t)end;
    }
    for (int64_t lane = groups() * kGroup; lane < kBlock; ++lane) r->starts[lane] = r->ends[lane] = 0;
    for (int group = 0; group < groups(); ++group) find_extremes(r, group);
  }

  static void find_extremes(RowRanges *r, int group) {
    int64_t some_first = INT64_MAX, some_end = 0, all_first = 0, all_end = INT64_MAX;
    for (int lane = group * kGroup; lane < (group + 1) * kGroup; ++lane) {
      const int64_t start = r->starts[lane], end = r->ends[lane];
      if (start < end && start < some_first) some_first = start;
      if (end > some_end) some_end = end;
      if (start > all_first) all_first = start;
      if (end < all_end) all_end = end;
    }
    if (some_first > some_end) some_first = some_end;
    /* A slanted edge crosses the 16 rows in 15 keys: one more makes the next run begin at a multiple of 16. */
    if (all_first > some_first && all_first < some_first + kGroup) all_first = some_first + kGroup;
    if (all_end < some_end && all_end > some_end - kGroup) all_end = some_end - kGroup;
    r->some_first[group] = some_first;
    r->some_end[group] = some_end;
    r->all_first[group] = all_first;
    r->all_end[group] = all_end;
  }

  /* Calls take(run) for runs in ascending order of their keys; every visible pair lies in exactly one. */
  template <class Take>
  void for_each_run(Take take) const {
    const int64_t count = problem.mask.intervals ? problem.mask.interval_count : 1;
    for (int64_t interval = 0; interval < count; ++interval) {
      RowRanges r;
      ranges(problem.mask.intervals ? interval : -1, &r);
      if (!problem.mask.words && !problem.mask.tile_first) {
        cut(r, 0, problem.kv_len, take);
        continue;
      }
      const int64_t index = batch * problem.mask.word_batch_stride + head * problem.mask.word_head_stride + block;
      if (!problem.mask.tile_first) {
        with_words(r, 0, problem.kv_len, problem.mask.words + index * problem.kv_len, take);
        continue;
      }
      for (int64_t tile = problem.mask.tile_first[index]; tile < problem.mask.tile_first[index + 1]; ++tile) {
        const int64_t first = problem.mask.tile_keys[2 * tile], end = problem.mask.tile_keys[2 * tile + 1];
        const int64_t word = problem.mask.tile_word[tile];
        if (word < 0)
          cut(r, first, end, take);
        else
          with_words(r, first, end, problem.mask.words + word, take);
      }
    }
  }

 private:
  /* Cut [first, end) where a group begins or ends to take part, or to see everything. */
  template <class Take>
  void cut(const RowRanges &r, int64_t first, int64_t end, Take take) const {
    int64_t ends[4 * kGroups + 1];
    int count = 0;
    for (int group = 0; group < groups(); ++group) {
      const int64_t keys[4] = {r.some_first[group], r.some_end[group], r.all_first[group], r.all_end[group]};
      for (int i = 0; i < 4; ++i)
        if (keys[i] > first && keys[i] < end) ends[count++] = keys[i];
    }
    ends[count++] = end;
    for (int i = 1; i < count; ++i) /* a handful: insertion sort */
      for (int j = i; j > 0 && ends[j - 1] > ends[j]; --j) {
        const int64_t swapped = ends[j];
        ends[j] = ends[j - 1];
        ends[j - 1] = swapped;
      }
    Run run{first, first, 0, 0, nullptr, nullptr, nullptr};
    for (int i = 0; i < count; ++i) {
      if (ends[i] == run.end) continue;
      Run next = kind_of(r, run.end, ends[i]);
      if (next.first_group == run.first_group && next.end_group == run.end_group && next.starts == run.starts) {
        run.end = next.end;
        continue;
      }
      if (run.end_group > run.first_group && run.end > run.first) take(run);
      run = next;
    }
    if (run.end_group > run.first_group && run.end > run.first) take(run);
  }

  /* The kind of a run of keys in which no group changes its part. */
  Run kind_of(const RowRanges &r, int64_t first, int64_t end) const {
    Run run{first, end, 0, 0, nullptr, nullptr, nullptr};
    bool all = true;
    for (int group = 0; group < groups(); ++group) {
      if (first < r.some_first[group] || first >= r.some_end[group]) continue;
      if (run.end_group == 0)
        run.first_group = group;
      else if (run.end_group != group)
        all = false; /* a group between takes no part */
      run.end_group = group + 1;
      if (first < r.all_first[group] || first >= r.all_end[group]) all = false;
    }
    if (!all) {
      run.starts = r.starts;
      run.ends = r.ends;
    }
    return run;
  }

  /* The same where the keys have words, looked at 16 keys at a time. */
  template <class Take>
  void with_words(const RowRanges &r, int64_t first, int64_t end, const uint64_t *words, Take take) const {
    const uint64_t valid = rows == kBlock ? ~0ull : (1ull << rows) - 1;
    Run waiting{0, 0, 0, 0, nullptr, nullptr, nullptr};
    cut(r, first, end, [&](Run run) {
      for (int64_t key = run.first; key < run.end; key += kGroup) {
        const int64_t last = key + kGroup < run.end ? key + kGroup : run.end;
        uint64_t some = 0, all = ~0ull;
        for (int64_t k = key; k < last; ++k) {
          some |= words[k - first];
          all &= words[k - first];
        }
        Run next{key, last, run.first_group, run.end_group, run.starts, run.ends, words + (key - first)};
        if ((some & valid) == 0) next.end_group = next.first_group;
        while (next.first_group < next.end_group && !((some & valid) >> (kGroup * next.first_group) & 0xffff))
          ++next.first_group;
        while (next.first_group < next.end_group && !((some & valid) >> (kGroup * (next.end_group - 1)) & 0xffff))
          --next.end_group;
        if ((all & valid) == valid) next.words = nullptr;
        if (next.first == waiting.end && next.first_group == waiting.first_group &&
            next.end_group == waiting.end_group && next.starts == waiting.starts && !next.words == !waiting.words) {
          waiting.end = next.end;
          continue;
        }
        if (waiting.end_group > waiting.first_group) take(waiting);
        waiting = next;
      }
    });
    if (waiting.end_group > waiting.first_group) take(waiting);
  }
};

/* One word for each key of [first, end): which of the 64 queries of the block see it. */
void visible_words(const Run &run, int64_t first, int64_t end, uint64_t *to) {
  for (int64_t key = first; key < end; ++key) {
    uint64_t word = run.words ? run.words[key - run.first] : ~0ull;
    if (run.starts) {
      uint64_t between = 0;
#if defined(REGARD_AVX512)
      const __m512i at = _mm512_set1_epi32((int)key);
      for (int lane = 0; lane < kBlock; lane += 16) {
        const __mmask16 begun = _mm512_cmple_epi32_mask(_mm512_load_si512(run.starts + lane), at);
        const uint64_t inside = _mm512_mask_cmpgt_epi32_mask(begun, _mm512_load_si512(run.ends + lane), at);
        between |= inside << lane;
      }
#else
      for (int lane = 0; lane < kBlock; ++lane)
        between |= (uint64_t)(run.starts[lane] <= key && key < run.ends[lane]) << lane;
#endif
      word &= between;
    }
    *to++ = word;
  }
}
