/* test_selective_scan.cpp: the scan whose decay depends on the token, against plain loops in double precision. */
#include <algorithm>

#include "test_compare.h"

namespace {

struct SelectiveCase {
  int64_t batch, length, channels, numbers;
  bool begun; /* there is a state before */
  uint64_t seed;

  int64_t states() const { return batch * numbers * channels; }
  int64_t chunks() const { return (length + 31) / 32; }
  Case named() const { return sizes(REGARD_F32, 0, 0, length, numbers, channels, channels, seed); } /* for messages */
};

typedef std::vector<float> Many;

struct SelectiveData {
  Rows inputs, step, write, read, above;
  Many decay, state, grad_last;
  regard_selective_scan scan;
};

Rows drawn(const SelectiveCase &c, int64_t width, int layout, Random *random, double from, double size) {
  Rows rows(REGARD_F32, c.batch, 1, c.length, width, layout);
  rows.each([&](int64_t where) { write(rows.at(where), REGARD_F32, from + size * random->number()); });
  return rows;
}

Many drawn(int64_t count, Random *random, double from, double size) {
  Many numbers((size_t)count);
  for (float &x : numbers) x = (float)(from + size * random->number());
  return numbers;
}

SelectiveData make(const SelectiveCase &c) {
  Random random{c.seed};
  const int layout = (int)random.below(3);
  SelectiveData d{drawn(c, c.channels, layout, &random, 0, 1),
                  drawn(c, c.channels, layout, &random, 0.25, 0.125),
                  drawn(c, c.numbers, layout, &random, 0, 1),
                  drawn(c, c.numbers, layout, &random, 0, 1),
                  drawn(c, c.channels, 1, &random, 0, 1),
                  drawn(c.numbers * c.channels, &random, -2, 1),
                  drawn(c.states(), &random, 0, c.begun),
                  drawn(c.states(), &random, 0, 1),
                  {}};
  d.scan = {1,
            c.batch,
            c.length,
            c.channels,
            c.numbers,
            d.inputs.view(),
            d.step.view(),
            d.write.view(),
            d.read.view(),
            d.decay.data(),
            d.state.data()};
  return d;
}

/* ------------------------------------------------------------------------------------ the plain loops */

struct SelectiveExpected {
  Numbers output, last, inputs, step, decay, write, read, state; /* the last six are gradients */
  Numbers decay_terms; /* sizes of what the gradient of decay is the sum of: it may cancel */
};

struct PlainScan {
  const SelectiveCase &c;
  const SelectiveData &d;

  double at(const Rows &rows, int64_t b, int64_t t, int64_t i) const {
    return read(rows.at(rows.place(b, 0, t, i)), REGARD_F32);
  }
  size_t place(int64_t b, int64_t i, int64_t channel) const {
    return (size_t)((b * c.numbers + i) * c.channels + channel);
  }
  size_t token(int64_t b, int64_t t, int64_t width, int64_t i) const {
    return (size_t)((b * c.length + t) * width + i);
  }

  SelectiveExpected run() const {
    const size_t tokens = (size_t)(c.batch * c.length);
    SelectiveExpected e;
    e.output = e.inputs = e.step = Numbers(tokens * (size_t)c.channels);
    e.write = e.read = Numbers(tokens * (size_t)c.numbers);
    e.last = e.state = Numbers((size_t)c.states());
    e.decay = e.decay_terms = Numbers((size_t)(c.numbers * c.channels));
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t channel = 0; channel < c.channels; ++channel)
        for (int64_t i = 0; i < c.numbers; ++i) one(b, channel, i, &e);
    return e;
  }

  /* One number of state of one channel. */
  void one(int64_t b, int64_t channel, int64_t i, SelectiveExpected *e) const {
    const double decay = d.decay[(size_t)(i * c.channels + channel)];
    Numbers h{(double)d.state[place(b, i, channel)]};
    for (int64_t t = 0; t < c.length; ++t) {
      const double dt = at(d.step, b, t, channel);
      h.push_back(std::exp(dt * decay) * h.back() + dt * at(d.inputs, b, t, channel) * at(d.write, b, t, i));
      e->output[token(b, t, c.channels, channel)] += at(d.read, b, t, i) * h.back();
    }
    e->last[place(b, i, channel)] = h.back();
    double of_h = d.grad_last[place(b, i, channel)];
    for (int64_t t = c.length - 1; t >= 0; --t) {
      const double dt = at(d.step, b, t, channel), u = at(d.inputs, b, t, channel), above = at(d.above, b, t, channel);
      const double written = at(d.write, b, t, i), shrink = std::exp(dt * decay);
      of_h += above * at(d.read, b, t, i);
      e->read[token(b, t, c.numbers, i)] += above * h[(size_t)t + 1];
      e->write[token(b, t, c.numbers, i)] += of_h * dt * u;
      e->inputs[token(b, t, c.channels, channel)] += of_h * dt * written;
      e->step[token(b, t, c.channels, channel)] += of_h * (u * written + decay * shrink * h[(size_t)t]);
      const double term = of_h * dt * shrink * h[(size_t)t];
      e->decay[(size_t)(i * c.channels + channel)] += term;
      e->decay_terms[(size_t)(i * c.channels + channel)] += std::fabs(term);
      of_h *= shrink;
    }
    e->state[place(b, i, channel)] = of_h;
  }
};

/* ------------------------------------------------------------------------------------------- comparing */

/* Against the largest number: sums over numbers of state, channels and a memory of a few dozen tokens, or of all. */
void near(const SelectiveCase &c, const char *what, const Numbers &got, const Numbers &expected,
          const Numbers &terms = {}) {
  ++checks;
  double largest = 0, worst = 0;
  for (double term : terms) largest = std::max(largest, term);
  for (size_t i = 0; i < got.size() && got.size() == expected.size(); ++i) {
    largest = std::max(largest, std::fabs(expected[i]));
    worst = std::isfinite(got[i]) ? std::max(worst, std::fabs(got[i] - expected[i])) : INFINITY;
  }
  const double may = rounding(REGARD_F32) * (double)(c.numbers + c.channels + c.length + 64) * largest;
  if (got.size() == expected.size() && worst <= may) return;
  char line[100];
  snprintf(line, sizeof line, "%.3g from what it should be, and may be %.3g", worst, may);
  fail(c.named(), what, line);
}

Numbers wide(const Many &given) { return Numbers(given.begin(), given.end()); }

struct SelectiveFound {
  Rows output, inputs, step;
  Many last, begins, decay, write, read, state;

  explicit SelectiveFound(const SelectiveCase &c)
      : output(REGARD_F32, c.batch, 1, c.length, c.channels, 1),
        inputs(REGARD_F32, c.batch, 1, c.length, c.channels, 1),
        step(REGARD_F32, c.batch, 1, c.length, c.channels, 0),
        last((size_t)c.states()),
        begins((size_t)(c.chunks() * c.states())),
        decay((size_t)(c.numbers * c.channels)),
        write((size_t)(c.batch * c.length * c.numbers)),
        read(write.size()),
        state((size_t)c.states()) {}

  std::vector<const Many *> many() const { return {&last, &begins, &decay, &write, &read, &state}; }
  std::vector<const Rows *> rows() const { return {&output, &inputs, &step}; }
};

SelectiveFound run_selective(const SelectiveCase &c, const SelectiveData &d, int32_t threads) {
  SelectiveFound f(c);
  regard_selective_scan scan = d.scan;
  scan.threads = threads;
  if (is_planted("begun")) scan.state = d.grad_last.data();
  if (is_planted("steered")) scan.write = scan.read;
  const regard_selective_scan_results r{f.output.view(), f.last.data(), f.begins.data()};
  if (regard_selective_scan_forward(&scan, &r) != REGARD_OK) fail(c.named(), "selective_scan", "another status than 0");
  if (is_planted("kept"))
    for (float &x : f.begins) x *= 1.001f;
  const regard_selective_scan_gradients a{d.above.view(),  d.grad_last.data(), f.begins.data(),
                                          f.inputs.view(), f.step.view(),      f.decay.data(),
                                          f.write.data(),  f.read.data(),      f.state.data()};
  if (regard_selective_scan_backward(&scan, &a) != REGARD_OK) fail(c.named(), "selective_scan_backward", "a status");
  return f;
}

void check_one(const SelectiveCase &c, int32_t threads) {
  const SelectiveData d = make(c);
  const SelectiveFound f = run_selective(c, d, 1), again = run_selective(c, d, threads);
  const SelectiveExpected e = PlainScan{c, d}.run();
  bool same = !is_planted("spread");
  for (size_t i = 0; i < f.many().size(); ++i) same = same && *f.many()[i] == *again.many()[i];
  for (size_t i = 0; i < f.rows().size(); ++i)
    same = same && memcmp(f.rows()[i]->memory.get(), again.rows()[i]->memory.get(), (size_t)f.rows()[i]->bytes) == 0;
  ++checks;
  if (!same) fail(c.named(), "selective_scan", "other numbers with more threads");
  near(c, "output", f.output.numbers(), e.output);
  near(c, "last state", wide(f.last), e.last);
  near(c, "gradient of inputs", f.inputs.numbers(), e.inputs);
  near(c, "gradient of step", f.step.numbers(), e.step);
  near(c, "gradient of decay", wide(f.decay), e.decay, e.decay_terms);
  near(c, "gradient of write", wide(f.write), e.write);
  near(c, "gradient of read", wide(f.read), e.read);
  near(c, "gradient of state", wide(f.state), e.state);
  for (const Rows *rows : f.rows())
    if (!rows->gaps_are_whole()) fail(c.named(), "selective_scan", "it wrote between rows");
}
} // namespace

void check_selective_scans(int64_t share) {
  const int64_t lengths[] = {1, 2, 31, 32, 33, 64, 100, 250}, channels[] = {1, 5, 16, 33, 64, 65, 150};
  const int64_t numbers[] = {1, 3, 4, 8, 16, 19};
  Random random{11};
  for (int i = 0; i < 30; ++i) {
    const SelectiveCase c{1 + random.below(3),      lengths[i % 8], channels[random.below(7)],
                          numbers[random.below(6)], i % 3 > 0,      7000 + (uint64_t)i};
    if (is_taken(c.seed, share)) for_each_isa(c.named(), [&](int32_t) { check_one(c, 4); });
  }
}
