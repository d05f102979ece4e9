/* selective_scan.inl: a state space whose decay depends on the token (Gu and Dao 2023, "Mamba", eq. 2a), with n numbers
 * of state for each channel:
 *
 *     h_t = exp(step_t decay) h_{t-1} + step_t u_t write_t,    y_t = sum over the n numbers of read_t h_t
 *
 * Lanes are channels. A task has 64 channels of one sample; it reads the tokens in chunks of 32, a few numbers of state
 * at a time, which stay in registers from token to token. Backward begins each chunk with the state that forward kept
 * and computes the others again. What all channels share, the gradients of write and read, each task sums for itself;
 * those sums are then added in one order. */

constexpr int64_t kScanTokens = 32;   /* of a chunk */
constexpr int64_t kScanChannels = 64; /* of a task */
#if defined(REGARD_AVX512) || defined(__aarch64__)
constexpr int kScanNumbers = 8; /* of state in registers */
#else
constexpr int kScanNumbers = 4;
#endif

/* 2^x for x that is not above 0. A state lives as long as its decays are close to 1, so that their errors add up over
 * thousands of tokens: here, other than in power_of_two, they vanish with x. Minimax of (2^x - 1) / x on [-1/2, 1/2]
 * with Lawson's iteration; relative error 2.0e-9 before rounding. */
REGARD_INLINE Floats decay_of(Floats x) {
  const Floats shift = broadcast(12582912.0f); /* 1.5 2^23: in a sum with it the fraction is rounded away */
  const Floats y = larger(broadcast(-127.0f), x), shifted = y + shift, r = y - (shifted - shift);
  Floats p = multiply_add(broadcast(0.00015353362f), r, broadcast(0.0013398875f));
  p = multiply_add(p, r, broadcast(0.009618437f));
  p = multiply_add(p, r, broadcast(0.055503325f));
  p = multiply_add(p, r, broadcast(0.24022648f));
  p = multiply_add(p, r, broadcast(0.6931472f));
  p = multiply_add(p, r, broadcast(1.0f));
  return p * (Floats)(((Ints32)shifted << 23) + 0x3f800000); /* times 2^whole; 0 for -127 */
}

REGARD_INLINE Floats load_some(const float *from, int64_t count) {
  if (count >= Simd<float>::width) return load(from);
  Floats vector{};
  memcpy(&vector, from, (size_t)count * 4);
  return vector;
}
REGARD_INLINE void store_some(float *to, Floats vector, int64_t count) {
  if (count >= Simd<float>::width) return store(to, vector);
  memcpy(to, &vector, (size_t)count * 4);
}

/* The chunk of a task, and the memory of its thread. */
struct SelectiveChunk {
  static constexpr int width = Simd<float>::width;

  const regard_selective_scan &p;
  const int64_t padded;              /* numbers of state, up to whole groups; those beyond do nothing */
  int64_t sample, channel, channels; /* of the task */
  int64_t start = 0, count = 0;      /* tokens of the chunk */

  float *rates;                            /* decay times log2(e), [padded][64] */
  float *state;                            /* [padded][64] */
  float *write, *read;                     /* [32][padded] */
  float *inputs, *step, *written, *output; /* [32], a vector each: of some channels; written is step times inputs */

  SelectiveChunk(const regard_selective_scan &problem, int64_t task)
      : p(problem), padded((problem.numbers + kScanNumbers - 1) / kScanNumbers * kScanNumbers) {
    const int64_t blocks = (p.channels + kScanChannels - 1) / kScanChannels;
    sample = task / blocks, channel = task % blocks * kScanChannels;
    channels = p.channels - channel < kScanChannels ? p.channels - channel : kScanChannels;
  }

  static float *floats(char **cursor, int64_t count) { return (float *)take_aligned(cursor, count * 4); }

  void lay_out(char **cursor) {
    rates = floats(cursor, padded * kScanChannels);
    state = floats(cursor, padded * kScanChannels);
    write = floats(cursor, kScanTokens * padded);
    read = floats(cursor, kScanTokens * padded);
    inputs = floats(cursor, kScanTokens * width);
    step = floats(cursor, kScanTokens * width);
    written = floats(cursor, kScanTokens * width);
    output = floats(cursor, kScanTokens * width);
  }

  int64_t vectors() const { return (channels + width - 1) / width * width; }
  int64_t some(int64_t lane) const { return channels - lane < width ? channels - lane : width; }

  /* (numbers, channels) of this task to or from [padded][64]. */
  void load_numbers(const float *from, float *to) const {
    memset(to, 0, (size_t)(padded * kScanChannels) * 4);
    for (int64_t i = 0; i < p.numbers; ++i)
      memcpy(to + i * kScanChannels, from + i * p.channels + channel, (size_t)channels * 4);
  }
  void save_numbers(const float *from, float *to) const {
    for (int64_t i = 0; i < p.numbers; ++i)
      memcpy(to + i * p.channels + channel, from + i * kScanChannels, (size_t)channels * 4);
  }

  void begin() {
    load_numbers(p.decay, rates);
    for (int64_t i = 0; i < padded * kScanChannels; ++i) rates[i] *= 1.44269504f;
    memset(write, 0, (size_t)(kScanTokens * padded) * 4);
    memset(read, 0, (size_t)(kScanTokens * padded) * 4);
  }

  void take(int64_t first) {
    start = first;
    count = p.length - first < kScanTokens ? p.length - first : kScanTokens;
    for (int64_t t = 0; t < count; ++t) {
      memcpy(write + t * padded, row_of<float>(p.write, sample, 0, start + t), (size_t)p.numbers * 4);
      memcpy(read + t * padded, row_of<float>(p.read, sample, 0, start + t), (size_t)p.numbers * 4);
    }
  }

  void load_channels(int64_t lane) {
    for (int64_t t = 0; t < count; ++t) {
      const Floats u = load_some(row_of<float>(p.inputs, sample, 0, start + t) + channel + lane, some(lane));
      const Floats dt = load_some(row_of<float>(p.step, sample, 0, start + t) + channel + lane, some(lane));
      store(inputs + t * width, u);
      store(step + t * width, dt);
      store(written + t * width, u * dt);
    }
  }
};

struct SelectiveForward {
  static constexpr int width = SelectiveChunk::width;
  const regard_selective_scan &p;
  const regard_selective_scan_results &r;
  int status = REGARD_OK;

  static void run_task(void *self, int64_t task) { ((SelectiveForward *)self)->task(task); }

  int run() {
    const int64_t blocks = (p.channels + kScanChannels - 1) / kScanChannels;
    regard::for_each_task(p.threads, p.batch * blocks, run_task, this);
    return status;
  }

  void task(int64_t which) {
    SelectiveChunk c(p, which);
    char *size = nullptr;
    c.lay_out(&size);
    char *memory = (char *)regard::thread_scratch((size_t)(size - (char *)nullptr));
    if (!memory) return __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
    c.lay_out(&memory);
    const int64_t numbers = p.numbers * p.channels;
    c.begin();
    c.load_numbers(p.state + c.sample * numbers, c.state);
    for (int64_t start = 0; start < p.length; start += kScanTokens) {
      c.save_numbers(c.state, r.begins + (start / kScanTokens * p.batch + c.sample) * numbers);
      c.take(start);
      for (int64_t lane = 0; lane < c.vectors(); lane += width) {
        c.load_channels(lane);
        memset(c.output, 0, (size_t)(kScanTokens * width) * 4);
        for (int64_t i = 0; i < c.padded; i += kScanNumbers) read_tokens(c, lane, i);
        for (int64_t t = 0; t < c.count; ++t)
          store_some(row_of<float>(r.output, c.sample, 0, start + t) + c.channel + lane, load(c.output + t * width),
                     c.some(lane));
      }
    }
    c.save_numbers(c.state, r.last + c.sample * numbers);
  }

  static void read_tokens(const SelectiveChunk &c, int64_t lane, int64_t first) {
    float *state = c.state + first * kScanChannels + lane;
    const float *rates = c.rates + first * kScanChannels + lane;
    Floats h[kScanNumbers];
#pragma GCC unroll 8
    for (int i = 0; i < kScanNumbers; ++i) h[i] = load(state + i * kScanChannels);
    for (int64_t t = 0; t < c.count; ++t) {
      const Floats step = load(c.step + t * width), written = load(c.written + t * width);
      const float *write = c.write + t * c.padded + first, *read = c.read + t * c.padded + first;
      Floats sum = load(c.output + t * width);
#pragma GCC unroll 8
      for (int i = 0; i < kScanNumbers; ++i) {
        const Floats decay = decay_of(step * load(rates + i * kScanChannels));
        h[i] = multiply_add(decay, h[i], written * write[i]);
        sum = multiply_add(h[i], broadcast(read[i]), sum);
      }
      store(c.output + t * width, sum);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kScanNumbers; ++i) store(state + i * kScanChannels, h[i]);
  }
};

struct SelectiveBackward {
  static constexpr int width = SelectiveChunk::width;
  const regard_selective_scan &p;
  const regard_selective_scan_gradients &a;
  const int64_t blocks;
  float *shared = nullptr; /* of write and read: [block][sample][token][2][numbers] */
  float *decays = nullptr; /* [sample][numbers][channels] */
  int status = REGARD_OK;

  /* Beside the chunk's own memory. `later`: gradient of the state, [padded][64]. The others of one chunk: */
  struct Room {
    float *later, *of_decay;                 /* [padded][64] */
    float *states, *shrinks;                 /* [32][some numbers], a vector each */
    float *of_output, *of_written, *of_step; /* [32], a vector each */
    float *of_write, *of_read;               /* [32][padded], a vector each */
    float *sums;                             /* [padded] */
  };

  SelectiveBackward(const regard_selective_scan &problem, const regard_selective_scan_gradients &arguments)
      : p(problem), a(arguments), blocks((problem.channels + kScanChannels - 1) / kScanChannels) {}

  static void run_task(void *self, int64_t task) { ((SelectiveBackward *)self)->task(task); }
  static void run_sum(void *self, int64_t task) { ((SelectiveBackward *)self)->sum_chunk(task); }
  static void run_decay(void *self, int64_t task) { ((SelectiveBackward *)self)->sum_decay(task); }

  int64_t chunks() const { return (p.length + kScanTokens - 1) / kScanTokens; }

  int run() {
    shared = (float *)malloc((size_t)(blocks * p.batch * p.length * 2 * p.numbers + 1) * 4);
    decays = (float *)malloc((size_t)(p.batch * p.numbers * p.channels + 1) * 4);
    if (!shared || !decays) status = REGARD_NO_MEMORY;
    if (status == REGARD_OK) regard::for_each_task(p.threads, p.batch * blocks, run_task, this);
    if (status == REGARD_OK) regard::for_each_task(p.threads, p.batch * chunks(), run_sum, this);
    if (status == REGARD_OK) regard::for_each_task(p.threads, p.numbers, run_decay, this);
    free(shared);
    free(decays);
    return status;
  }

  Room lay_out(SelectiveChunk *c, char **cursor) const {
    c->lay_out(cursor);
    Room room;
    room.later = c->floats(cursor, c->padded * kScanChannels);
    room.of_decay = c->floats(cursor, c->padded * kScanChannels);
    room.states = c->floats(cursor, kScanTokens * kScanNumbers * width);
    room.shrinks = c->floats(cursor, kScanTokens * kScanNumbers * width);
    room.of_output = c->floats(cursor, kScanTokens * width);
    room.of_written = c->floats(cursor, kScanTokens * width);
    room.of_step = c->floats(cursor, kScanTokens * width);
    room.of_write = c->floats(cursor, kScanTokens * c->padded * width);
    room.of_read = c->floats(cursor, kScanTokens * c->padded * width);
    room.sums = c->floats(cursor, c->padded + width);
    return room;
  }

  void task(int64_t which) {
    SelectiveChunk c(p, which);
    char *size = nullptr;
    lay_out(&c, &size);
    char *memory = (char *)regard::thread_scratch((size_t)(size - (char *)nullptr));
    if (!memory) return __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
    const Room room = lay_out(&c, &memory);
    const int64_t numbers = p.numbers * p.channels;
    c.begin();
    c.load_numbers(a.grad_last + c.sample * numbers, room.later);
    memset(room.of_decay, 0, (size_t)(c.padded * kScanChannels) * 4);
    for (int64_t chunk = chunks() - 1; chunk >= 0; --chunk) {
      c.take(chunk * kScanTokens);
      c.load_numbers(a.begins + (chunk * p.batch + c.sample) * numbers, c.state);
      memset(room.of_write, 0, (size_t)(kScanTokens * c.padded * width) * 4);
      memset(room.of_read, 0, (size_t)(kScanTokens * c.padded * width) * 4);
      for (int64_t lane = 0; lane < c.vectors(); lane += width) of_channels(&c, room, lane);
      of_shared(c, room, which);
    }
    c.save_numbers(room.of_decay, decays + c.sample * numbers);
    c.save_numbers(room.later, a.grad_state + c.sample * numbers);
  }

  void of_channels(SelectiveChunk *c, const Room &room, int64_t lane) const {
    c->load_channels(lane);
    const int64_t some = c->some(lane), at = c->channel + lane;
    for (int64_t t = 0; t < c->count; ++t) {
      store(room.of_output + t * width, load_some(row_of<float>(a.grad_output, c->sample, 0, c->start + t) + at, some));
      store(room.of_written + t * width, Floats{});
      store(room.of_step + t * width, Floats{});
    }
    for (int64_t i = 0; i < c->padded; i += kScanNumbers) {
      again(*c, room, lane, i);
      back(*c, room, lane, i);
    }
    for (int64_t t = 0; t < c->count; ++t) {
      const Floats of_written = load(room.of_written + t * width);
      store_some(row_of<float>(a.grad_inputs, c->sample, 0, c->start + t) + at, of_written * load(c->step + t * width),
                 some);
      store_some(row_of<float>(a.grad_step, c->sample, 0, c->start + t) + at,
                 multiply_add(of_written, load(c->inputs + t * width), load(room.of_step + t * width)), some);
    }
  }

  /* The states of the chunk once more. */
  static void again(const SelectiveChunk &c, const Room &room, int64_t lane, int64_t first) {
    const float *rates = c.rates + first * kScanChannels + lane;
    Floats h[kScanNumbers];
#pragma GCC unroll 8
    for (int i = 0; i < kScanNumbers; ++i) h[i] = load(c.state + (first + i) * kScanChannels + lane);
    for (int64_t t = 0; t < c.count; ++t) {
      const Floats step = load(c.step + t * width), written = load(c.written + t * width);
      const float *write = c.write + t * c.padded + first;
#pragma GCC unroll 8
      for (int i = 0; i < kScanNumbers; ++i) {
        const Floats decay = decay_of(step * load(rates + i * kScanChannels));
        h[i] = multiply_add(decay, h[i], written * write[i]);
        store(room.shrinks + (t * kScanNumbers + i) * width, decay);
        store(room.states + (t * kScanNumbers + i) * width, h[i]);
      }
    }
  }

  static void back(const SelectiveChunk &c, const Room &room, int64_t lane, int64_t first) {
    for (int i = 0; i < kScanNumbers; ++i) {
      const int64_t place = (first + i) * kScanChannels + lane;
      const Floats begin = load(c.state + place), rate = load(c.rates + place) * 0.69314718f;
      Floats of_state = load(room.later + place), of_decay{};
      for (int64_t t = c.count - 1; t >= 0; --t) {
        const Floats of_output = load(room.of_output + t * width), shrink = load(shrink_of(room, t, i));
        const Floats before = t > 0 ? load(state_of(room, t - 1, i)) : begin;
        of_state = multiply_add(of_output, broadcast(c.read[t * c.padded + first + i]), of_state);
        add(room.of_read + (t * c.padded + first + i) * width, of_output, load(state_of(room, t, i)));
        add(room.of_write + (t * c.padded + first + i) * width, of_state, load(c.written + t * width));
        add(room.of_written + t * width, of_state, broadcast(c.write[t * c.padded + first + i]));
        of_state = of_state * shrink;
        const Floats of_exponent = of_state * before;
        of_decay = multiply_add(of_exponent, load(c.step + t * width), of_decay);
        add(room.of_step + t * width, of_exponent, rate);
      }
      store(room.later + place, of_state);
      store(room.of_decay + place, load(room.of_decay + place) + of_decay);
    }
  }

  static REGARD_INLINE float *state_of(const Room &room, int64_t t, int i) {
    return room.states + (t * kScanNumbers + i) * width;
  }
  static REGARD_INLINE float *shrink_of(const Room &room, int64_t t, int i) {
    return room.shrinks + (t * kScanNumbers + i) * width;
  }
  static REGARD_INLINE void add(float *to, Floats x, Floats y) { store(to, multiply_add(x, y, load(to))); }

  /* This task's part of what all channels share. */
  void of_shared(const SelectiveChunk &c, const Room &room, int64_t task) const {
    const int64_t block = task % blocks;
    for (int64_t t = 0; t < c.count; ++t) {
      float *to = shared + ((block * p.batch + c.sample) * p.length + c.start + t) * 2 * p.numbers;
      for (int which = 0; which < 2; ++which) {
        const float *from = which == 0 ? room.of_write : room.of_read;
        for (int64_t i = 0; i < c.padded; i += width) {
          Floats each[width];
          for (int64_t k = 0; k < width; ++k)
            each[k] = i + k < c.padded ? load(from + (t * c.padded + i + k) * width) : Floats{};
          store(room.sums + i, sums_of_each(each));
        }
        memcpy(to, room.sums, (size_t)p.numbers * 4);
        to += p.numbers;
      }
    }
  }

  void sum_chunk(int64_t task) const {
    const int64_t sample = task / chunks(), start = task % chunks() * kScanTokens;
    const int64_t end = start + kScanTokens < p.length ? start + kScanTokens : p.length, stride = 2 * p.numbers;
    for (int64_t t = start; t < end; ++t)
      for (int64_t i = 0; i < stride; ++i) {
        float sum = 0;
        for (int64_t block = 0; block < blocks; ++block)
          sum += shared[((block * p.batch + sample) * p.length + t) * stride + i];
        float *to = i < p.numbers ? a.grad_write : a.grad_read;
        to[(sample * p.length + t) * p.numbers + i % p.numbers] = sum;
      }
  }

  void sum_decay(int64_t number) const {
    for (int64_t channel = 0; channel < p.channels; ++channel) {
      float sum = 0;
      for (int64_t sample = 0; sample < p.batch; ++sample)
        sum += decays[(sample * p.numbers + number) * p.channels + channel];
      a.grad_decay[number * p.channels + channel] = sum;
    }
  }
};

int selective_scan_forward(const regard_selective_scan *p, const regard_selective_scan_results *r) {
  return SelectiveForward{*p, *r}.run();
}

int selective_scan_backward(const regard_selective_scan *p, const regard_selective_scan_gradients *a) {
  return SelectiveBackward(*p, *a).run();
}
