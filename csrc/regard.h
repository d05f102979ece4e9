/* regard.h: the whole ABI of the native core.
 *
 * Plain C: pointers, sizes and strides. The caller allocates every output and has checked every argument; the
 * functions return a status and never throw, and nothing they allocate outlives the call except scratch memory
 * that belongs to the worker threads. Strides count elements, not bytes. Tensors are (batch, heads, length, width).
 */
#ifndef REGARD_H
#define REGARD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define REGARD_EXPORT __declspec(dllexport)
#else
#define REGARD_EXPORT __attribute__((visibility("default")))
#endif

#define REGARD_ABI_VERSION 1

/* What a function returns: 0, or one of the failures; REGARD_NOT_FINITE is added to success. */
#define REGARD_OK 0
#define REGARD_NOT_FINITE 1 /* done, and some of what was written is NaN or Inf */
#define REGARD_NO_MEMORY (-1)
#define REGARD_BAD_ARGUMENT (-2)

/* Element types. "Working" type below: double for REGARD_F64, float for the others. */
#define REGARD_F32 0
#define REGARD_BF16 1
#define REGARD_F16 2
#define REGARD_F64 3

#define REGARD_UNLIMITED INT64_MAX

/* Rows of width elements; the stride of the width is 1. */
typedef struct {
  void *data;
  int64_t batch_stride, head_stride, row_stride;
} regard_rows;

/* A view that broadcasts to (batch, heads, q_len, kv_len): a stride is 0 where it is shared. */
typedef struct {
  void *data; /* NULL: none */
  int64_t batch_stride, head_stride, query_stride, key_stride;
} regard_pairs;

/* Which pairs may attend: those that pass every part.
 *
 * band       -before <= key - (query + offset) <= after
 * intervals  the key lies in one of `interval_count` half-open intervals of its row: int32
 *            [batch][head][interval_count][2][q_len], starts then ends, disjoint, ascending; unused ones are empty
 * words      bit i of a word says whether query 64 * block + i may attend to a key. With `tile_first` the words
 *            belong to runs of keys, of each block of 64 queries: run t covers keys tile_keys[2t] to
 *            tile_keys[2t + 1], and its words begin at tile_word[t], or -1 when all of it may. Without
 *            it there is one word for each key of each block.
 */
typedef struct {
  int64_t before, after, offset;
  const int32_t *intervals;
  int64_t interval_count, interval_batch_stride, interval_head_stride;
  const uint64_t *words;
  const int64_t *tile_first; /* [batch][head][blocks], and one more */
  const int32_t *tile_keys;
  const int64_t *tile_word;
  int64_t word_batch_stride, word_head_stride; /* in blocks of queries */
} regard_mask;

/* A table over the distances of a problem: row key - query + distance_offset, of q_len + kv_len - 1 rows. */
typedef struct {
  const void *data; /* working type; NULL: none */
  int64_t head_stride, row_stride;
} regard_table;

typedef struct {
  int32_t dtype;   /* of query, key, value, output and their gradients */
  int32_t threads; /* at most so many */
  int64_t batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim;
  regard_rows query, key, value;
  double scale;
  double softcap; /* 0: none */
  regard_mask mask;
  regard_pairs bias; /* working type, added after the softcap; -inf forbids the pair, whatever its key holds */
  int64_t distance_offset;
  regard_table distance_bias;   /* width 1: added after the softcap */
  regard_rows distance_query;   /* working type: meets distance_keys, added before scale and softcap */
  regard_table distance_keys;   /* width head_dim */
  regard_table distance_values; /* width value_dim: added to the values */
  const void *sink;             /* working type [heads]; NULL: none */
  uint64_t seed;
  uint64_t drop_below; /* a weight is dropped when its 32 random bits are below this; 0: no dropout */
  double keep_scale;   /* of the weights that are kept */
} regard_problem;

/* Forward. lse and lse_low are of the working type, contiguous (batch, heads, q_len). Their sum is the log of the
 * row's normaliser, with the sink; lse alone is it rounded. lse_low may be NULL. -inf where a row sees nothing. */
typedef struct {
  regard_rows output;
  void *lse, *lse_low;
} regard_forward_results;

REGARD_EXPORT int regard_forward(const regard_problem *problem, const regard_forward_results *results);

/* Backward. The gradients of query, key and value are written, those of the tables and the bias added to what is
 * there; NULL where not wanted. */
typedef struct {
  regard_rows output, grad_output;
  const void *lse, *lse_low; /* lse_low may be NULL */
  const void *grad_lse;      /* working type (batch, heads, q_len), or NULL */
  regard_rows grad_query, grad_key, grad_value;
  regard_pairs grad_bias;          /* with the strides of the bias; broadcast dimensions are summed */
  regard_rows grad_distance_query; /* working type */
  /* contiguous (batch, heads, splits, rows, width), the first double, the others of the working type; the caller sums
   * over what is shared */
  void *grad_distance_bias, *grad_distance_keys, *grad_distance_values;
  int64_t table_splits;
} regard_backward_arguments;

/* How many partial tables backward writes for each head of each sample. */
REGARD_EXPORT int64_t regard_backward_splits(const regard_problem *problem);
REGARD_EXPORT int regard_backward(const regard_problem *problem, const regard_backward_arguments *arguments);

/* Weights of chosen heads, queries and keys: exp(score - lse), 0 where a pair may not attend; before dropout, and
 * without a look at the values. Everything written is of the working type and contiguous. */
typedef struct {
  const int64_t *heads;       /* any */
  const int64_t *rows, *cols; /* ascending, none twice */
  int64_t head_count, row_count, col_count;
  /* (batch, head_count, row_count); their sum is the log of each row's normaliser, with the sink. lse is finite. Of a
   * row that sees nothing lse_low is -inf. lse may be NULL: found from all keys; lse_low may be NULL: 0. */
  const void *lse, *lse_low;
  void *found_top, *found_rest; /* the same two numbers where lse is NULL, top finite; or both NULL */
  void *weights;                /* (batch, head_count, row_count, col_count), or NULL */
} regard_weights_arguments;

/* REGARD_NOT_FINITE: NaN or Inf is in a chosen row, or beside it, and what was written is not to be used. */
REGARD_EXPORT int regard_weights(const regard_problem *problem, const regard_weights_arguments *arguments);

/* What the weights are like, in memory that grows with the lengths. Of the working type and contiguous; NULL where not
 * wanted. Entropy in nats; the largest score, -inf where a row sees nothing; the weight on key 0; the mean of
 * |key - query|, indices both; what each key received from all queries together; the largest weights of each row, the
 * earlier key first where scores are equal, and their keys, filled up with keys of weight 0; the weight of bins of keys,
 * index * side / length, summed, and its mean over bins of queries. The same for every number of threads. */
typedef struct {
  void *entropy, *max_logit, *sink_share, *distance; /* (batch, heads, q_len) */
  void *received;                                    /* (batch, heads, kv_len) */
  int64_t top_count;                                 /* 0 to 64, and at most kv_len */
  void *top_weights;                                 /* (batch, heads, q_len, top_count) */
  int64_t *top_keys;
  int64_t pooled_side;
  void *pooled; /* (batch, heads, pooled_side, pooled_side) */
} regard_statistics_results;

/* REGARD_NOT_FINITE: NaN or Inf is in some row that sees something, and what was written is not to be used. */
REGARD_EXPORT int regard_statistics(const regard_problem *problem, const regard_statistics_results *results);

/* A bool mask (one byte a pair, nonzero = may attend) to words[batch][head][block of 64 queries][key]. */
REGARD_EXPORT int regard_pack_mask(const regard_pairs *mask, int64_t batch, int64_t heads, int64_t q_len,
                                   int64_t kv_len, uint64_t *words, int32_t threads);

/* C = A B, and bias[column] added: a linear map, or one of its gradients. A is (rows, steps), B (steps, columns), C
 * (rows, columns) with neighbouring columns side by side; C overlaps nothing that is read. Any strides of A and B; fast
 * where B's columns or its steps are side by side. The same for every number of threads. */
typedef struct {
  int32_t dtype; /* REGARD_F32 or REGARD_F64 */
  int32_t threads;
  int64_t rows, columns, steps;
  const void *a;
  int64_t a_row, a_step;
  const void *b;
  int64_t b_step, b_column;
  const void *bias; /* NULL: none */
  void *c;
  int64_t c_row;
} regard_product;

REGARD_EXPORT int regard_multiply(const regard_product *product);

/* The causal sum of features: out_i = sum_{j <= i} w_ij v_j / sum_{j <= i} w_ij with w_ij = (phi(q_i) . phi(k_j))
 * exp(log_weight_j). float throughout. phi(x) is exp(projection x), or exp(+-projection x) with `opposites`, or the rows
 * themselves without a projection. What comes before the first token is the state: the sums of features times values
 * and of features, (batch, heads, features, value_dim) and (batch, heads, features), over exp(scale), (batch, heads);
 * all zeros for nothing. Contiguous where no strides are given. The same for every number of threads. */
typedef struct {
  int32_t threads;
  int32_t opposites;
  int64_t batch, heads, length, width, features, value_dim;
  regard_rows query, key, value;
  regard_rows log_weight;  /* of width 1; data NULL: none. There is one where there is a projection. */
  const float *projection; /* (features, width), half as many rows with opposites; NULL: none */
  const float *values, *keys, *scale;
} regard_causal_scan;

typedef struct {
  regard_rows output;
  float *normaliser; /* (batch, heads, length) */
  float *values, *keys, *scale;
} regard_causal_scan_results;

typedef struct {
  regard_rows output, grad_output;
  const float *normaliser, *grad_values, *grad_keys;
  regard_rows grad_query, grad_key, grad_value;
  float *grad_log; /* (batch, heads, length), where there are log weights */
  float *grad_values_before, *grad_keys_before;
} regard_causal_scan_gradients;

REGARD_EXPORT int regard_causal_scan_forward(const regard_causal_scan *scan, const regard_causal_scan_results *results);
REGARD_EXPORT int regard_causal_scan_backward(const regard_causal_scan *scan,
                                              const regard_causal_scan_gradients *gradients);

/* A state space whose decay depends on the token: h_t = exp(step_t decay) h_{t-1} + step_t inputs_t write_t, and
 * output_t = sum over the numbers of read_t h_t. float throughout. inputs, step, output and their gradients are (batch,
 * length, channels), with no heads; write and read (batch, length, numbers); decay (numbers, channels), not positive; a
 * state (batch, numbers, channels). begins, (chunks of 32 tokens, batch, numbers, channels), are the states before each
 * chunk, which backward needs. Contiguous where no strides are given. The same for every number of threads. */
typedef struct {
  int32_t threads;
  int64_t batch, length, channels, numbers;
  regard_rows inputs, step, write, read;
  const float *decay, *state;
} regard_selective_scan;

typedef struct {
  regard_rows output;
  float *last, *begins;
} regard_selective_scan_results;

typedef struct {
  regard_rows grad_output;
  const float *grad_last, *begins;
  regard_rows grad_inputs, grad_step;
  float *grad_decay, *grad_write, *grad_read, *grad_state;
} regard_selective_scan_gradients;

REGARD_EXPORT int regard_selective_scan_forward(const regard_selective_scan *scan,
                                                const regard_selective_scan_results *results);
REGARD_EXPORT int regard_selective_scan_backward(const regard_selective_scan *scan,
                                                 const regard_selective_scan_gradients *gradients);

/* Floating-point operations each second when this many threads multiply and add in registers for about so many
 * seconds: what an element type's kernels are a fraction of. */
REGARD_EXPORT double regard_fma_peak(int32_t dtype, int32_t threads, double seconds);

/* The instruction set in use: "baseline", "avx2", "avx512", "avx512_bf16" or "neon". */
REGARD_EXPORT const char *regard_isa(void);
/* Choose one by name; NULL goes back to the best. REGARD_BAD_ARGUMENT when this machine or build has it not. */
REGARD_EXPORT int regard_set_isa(const char *name);
/* The i-th instruction set that this machine and this build have, best first; NULL past the last. */
REGARD_EXPORT const char *regard_available_isa(int32_t index);
/* What REGARD_ISA in the environment asked for, if this machine or build has it not and the best was taken; or NULL. */
REGARD_EXPORT const char *regard_isa_request_error(void);
/* How often regard_forward and regard_backward were called since the library was loaded. */
REGARD_EXPORT void regard_calls(int64_t *forward, int64_t *backward);
REGARD_EXPORT int32_t regard_abi_version(void);
/* The bytes of one of the structs above, by its name, for callers that lay them out themselves; -1: no such struct. */
REGARD_EXPORT int64_t regard_struct_size(const char *name);

/* Forward and backward as CPU kernels of torch's own fused attention operators. `functions` are the addresses of what
 * regard_torch_function names, in that order, NULL past the last; they are torch 2.13's. A handle, or NULL where torch
 * refused. What these kernels do not serve they pass on to regard::flash_attention_for_cpu and
 * regard::flash_attention_for_cpu_backward, which somebody must have defined. */
REGARD_EXPORT const char *regard_torch_function(int32_t index);
REGARD_EXPORT void *regard_torch_register(const void *const *functions);
REGARD_EXPORT void regard_torch_unregister(void *handle);

#ifdef __cplusplus
}
#endif
#endif
