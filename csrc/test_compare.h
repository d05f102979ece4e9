/* test_compare.h: what the plain loops expect, how far from it a result may be, and who keeps count. */
#ifndef REGARD_TEST_COMPARE_H
#define REGARD_TEST_COMPARE_H

#include "test_case.h"

/* A sum, and the sum of the sizes of its terms: rounding errors are relative to the latter. */
struct Sum {
  double value = 0, size = 0;
  void add(double x, double size_of_x) {
    value += x;
    size += size_of_x;
  }
};
typedef std::vector<Sum> Sums;

struct Expected {
  Sums output, lse;
  Sums query, key, value, distance_query, distance_bias, distance_keys, distance_values, bias; /* gradients */
  Numbers scores; /* (batch, heads, q_len, kv_len), -inf where a pair may not attend */
  double largest_score = 0;

  double weight(const Case &c, int64_t row, int64_t key) const {
    const double score = scores[(size_t)(row * c.kv_len + key)];
    return score == -INFINITY ? 0 : std::exp(score - lse[(size_t)row].value);
  }
};

struct Gradients { /* what comes from above */
  Numbers output, lse;
};

/* Forward and backward with plain loops. */
Expected expect(const Case &c, const Gradients &g);

extern std::string planted; /* the fault that was asked for */
inline bool is_planted(const char *name) { return planted == name; }

extern int64_t failures, checks;
void fail(const Case &c, const char *what, const char *how);

/* Rounding errors of a weight, relative; and of what is made from weights and stored. */
double error_of_weights(const Case &c, const Expected &e);
double allowance(const Case &c, const Expected &e);
void compare(const Case &c, const char *what, const Numbers &got, const Sums &expected, double relative, int dtype);
/* REGARD_NOT_FINITE exactly where something that was written is NaN or Inf. */
void compare_status(const Case &c, const char *what, int status, bool all_finite);

/* One of `share` cases, by chance. */
inline bool is_taken(uint64_t seed, int64_t share) { return Random{~seed}.below(share) == 0; }

/* The problem as the library gets it: as it is, or with the fault that was asked for. */
regard_problem handed_over(const Case &c, int32_t threads);

/* ---------------------------------------------------------------------------------- rooms of the test */

/* test_attention.cpp */
struct Forwarded {
  Rows output, lse, low;
};
Forwarded run_forward(const Case &c, int32_t threads, int *status);
Forwarded check_forward(const Case &c, const Expected &e, int32_t threads);
void check_backward(const Case &c, const Expected &e, const Forwarded &f, const Rows &above, const Rows &lse_above,
                    int32_t threads);

/* test_observe.cpp */
void check_weights(const Case &c, const Expected &e, const Forwarded &forwarded);
void check_statistics(const Case &c, const Expected &e);

/* test_extremes.cpp: what is not finite, in the numbers put in and in the results. */
void check_extremes(int64_t share);

/* test_scans.cpp and test_selective_scan.cpp: sums along the tokens. */
void check_scans(int64_t share);
void check_selective_scans(int64_t share);

/* test_product.cpp: matrix products. */
void check_products(int64_t share);

/* take() for each instruction set of this machine; `isa` counts them. */
template <class Take>
void for_each_isa(const Case &c, Take take) {
  const char *name;
  for (int32_t isa = 0; (name = regard_available_isa(isa)); ++isa) {
    if (regard_set_isa(name) != REGARD_OK)
      fail(c, name, "it is available and cannot be set");
    else
      take(isa);
  }
  regard_set_isa(nullptr);
}

#endif
