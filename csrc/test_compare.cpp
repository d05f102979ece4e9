/* test_compare.cpp: see test_compare.h. */
#include "test_compare.h"

std::string planted;
int64_t failures = 0, checks = 0;

void fail(const Case &c, const char *what, const char *how) {
  if (++failures <= 20) printf("FAILED %s, %s: %s: %s\n", regard_isa(), c.text().c_str(), what, how);
}

/* An error of a score is one of its weight, and it has at most one rounding for each number that it is made from. */
double error_of_weights(const Case &c, const Expected &e) {
  const double u = rounding(working(c.dtype)), exponential = c.dtype == REGARD_F64 ? 4 * u : 2e-7;
  const double steps = c.large != 0 ? 6 : (double)(2 * c.head_dim + 8);
  return exponential + ((1 + e.largest_score) * steps + (double)(c.kv_len + 16)) * u;
}

double allowance(const Case &c, const Expected &e) {
  const double u = rounding(working(c.dtype)), stored = c.dtype == working(c.dtype) ? 0 : rounding(c.dtype);
  const double coarse = c.dtype == REGARD_BF16 ? 1e-4 : 0; /* weights that are rounded to bfloat16 anyway */
  return error_of_weights(c, e) + 4 * stored + coarse + (double)(c.value_dim + c.q_len) * u;
}

void compare(const Case &c, const char *what, const Numbers &got, const Sums &expected, double relative, int dtype) {
  ++checks;
  if (got.size() != expected.size()) return fail(c, what, "another number of elements");
  for (size_t i = 0; i < got.size(); ++i) {
    const Sum &sum = expected[i];
    if (got[i] == sum.value) continue;
    const double may =
        relative * sum.size + rounding(dtype) * std::fabs(sum.value) + (dtype == REGARD_F16 ? 6e-8 : 1e-30);
    if (std::fabs(got[i] - sum.value) <= may) continue;
    char line[120];
    snprintf(line, sizeof line, "element %zu is %.9g, not %.9g; it may differ by %.2g", i, got[i], sum.value, may);
    return fail(c, what, line);
  }
}

void compare_status(const Case &c, const char *what, int status, bool all_finite) {
  ++checks;
  if (is_planted("status")) status = REGARD_OK;
  if (status == (all_finite ? REGARD_OK : REGARD_NOT_FINITE)) return;
  char line[100];
  snprintf(line, sizeof line, "the status is %d, and %s", status,
           all_finite ? "all is finite" : "NaN or Inf was written");
  fail(c, what, line);
}

regard_problem handed_over(const Case &c, int32_t threads) {
  regard_problem p = c.problem;
  p.threads = threads;
  if (is_planted("scale")) p.scale *= 1.05;
  if (is_planted("band") && p.mask.after != REGARD_UNLIMITED) ++p.mask.after;
  if (is_planted("heads")) p.key.head_stride = 0;
  if (is_planted("length") && p.kv_len > 1) --p.kv_len;
  if (is_planted("sink")) p.sink = nullptr;
  if (is_planted("stretch") && p.kv_len > 512) p.kv_len = p.kv_len / 512 * 512;
  if (is_planted("offset") && c.large != 0) p.scale *= 1 + 1e-5; /* of large scores */
  if (is_planted("dropout") && p.drop_below) ++p.seed;
  return p;
}

Case sizes(int dtype, int mask, int options, int64_t q_len, int64_t kv_len, int64_t head_dim, int64_t value_dim,
           uint64_t seed) {
  Random random{seed}; /* so that no two choices go together */
  Case c{};
  c.dtype = dtype, c.mask = mask, c.options = options, c.layout = (int)random.below(3);
  c.batch = 1 + random.below(2);
  c.kv_heads = 1 + random.below(2);
  c.heads = c.kv_heads * (1 + random.below(2));
  c.q_len = q_len, c.kv_len = kv_len, c.head_dim = head_dim, c.value_dim = value_dim;
  c.seed = seed;
  return c;
}
