/* torch_kernels.cpp: forward and backward as kernels of torch's own operators, which its dispatcher calls without
 * Python in between: for a short text the way there takes longer than the attention.
 *
 * They speak torch's stable C interface, which `torch_tensors.inl` declares. What these kernels do not serve they pass
 * on to regard's own operators of the same signature.
 *
 * A kernel owns the tensors on its stack; a call through the dispatcher takes them over.
 */
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "regard.h"

namespace {
#include "torch_tensors.inl"

constexpr int64_t kOneThread = 1 << 19; /* below so many multiply-adds one thread is done before a second has woken */

/* ----------------------------------------------------------------------------------- a problem */

struct Memory { /* freed at the end, unless torch throws: then nothing was asked for yet */
  void *data = nullptr;
  ~Memory() { free(data); }
  void *get(int64_t bytes) { return data = malloc(bytes > 0 ? (size_t)bytes : 1); }
};

/* What both directions begin with. */
struct Call {
  View query, key, value;
  regard_problem p = {};
  Memory words;

  int32_t working() const { return query.dtype == torch.float64() ? torch.float64() : torch.float32(); }
  int64_t working_bytes() const { return query.dtype == torch.float64() ? 8 : 4; }
  int64_t lengths() const { return p.batch * p.heads * p.q_len; }

  /* False when this is not for the kernels here. */
  bool fill(const Value *tensors, double dropout, bool causal, Value mask, Value scale) {
    if (!look(tensor_in(tensors[0]), &query) || !look(tensor_in(tensors[1]), &key) ||
        !look(tensor_in(tensors[2]), &value))
      return false;
    if (!query.has_rows() || !key.has_rows() || !value.has_rows() || dropout != 0) return false;
    if (key.dtype != query.dtype || value.dtype != query.dtype || !find_dtype()) return false;
    const int64_t *q = query.sizes, *k = key.sizes, *v = value.sizes;
    if (k[0] != q[0] || v[0] != q[0] || v[1] != k[1] || v[2] != k[2] || k[3] != q[3] || q[1] % k[1]) return false;
    p.batch = q[0], p.heads = q[1], p.q_len = q[2], p.head_dim = q[3];
    p.kv_heads = k[1], p.kv_len = k[2], p.value_dim = v[3];
    if (p.q_len >= INT32_MAX || p.kv_len >= INT32_MAX) return false;
    p.query = query.rows(), p.key = key.rows(), p.value = value.rows();
    p.scale = scale ? number_in(*reinterpret_cast<Value *>(scale)) : 1 / std::sqrt((double)p.head_dim);
    p.mask.before = REGARD_UNLIMITED;
    p.mask.after = causal ? 0 : REGARD_UNLIMITED;
    uint32_t threads = 1;
    if ((double)p.batch * p.heads * p.q_len * p.kv_len * (p.head_dim + p.value_dim) >= kOneThread)
      if (torch.get_threads(&threads)) threads = 1;
    p.threads = (int32_t)threads;
    return !mask || add_mask(tensor_in(*reinterpret_cast<Value *>(mask)));
  }

  /* Is this an output of the call, or the gradient of one? */
  bool gave(const View &view) const {
    const int64_t *n = view.sizes;
    return view.has_rows() && view.dtype == query.dtype && n[0] == p.batch && n[1] == p.heads && n[2] == p.q_len &&
           n[3] == p.value_dim;
  }

  bool find_dtype() {
    const int32_t known[] = {torch.float32(), torch.bfloat16(), torch.float16(), torch.float64()};
    for (p.dtype = 0; p.dtype < 4; ++p.dtype)
      if (known[p.dtype] == query.dtype) return true;
    return false;
  }

  /* A bool mask, packed to words; or a bias of the working type. */
  bool add_mask(Tensor tensor) {
    View mask;
    regard_pairs pairs;
    const int64_t wanted[4] = {p.batch, p.heads, p.q_len, p.kv_len};
    bool defined; /* autograd hands on a mask that was not there as a tensor that is none */
    if (torch.is_defined(tensor, &defined)) return false;
    if (!defined) return true;
    if (!look(tensor, &mask) || !mask.pairs(wanted, &pairs)) return false;
    if (mask.dtype == working()) {
      p.bias = pairs;
      return true;
    }
    if (mask.dtype != torch.boolean()) return false;
    const int64_t batch = pairs.batch_stride ? p.batch : 1, heads = pairs.head_stride ? p.heads : 1;
    const int64_t blocks = (p.q_len + 63) / 64;
    uint64_t *packed = (uint64_t *)words.get(batch * heads * blocks * p.kv_len * 8);
    if (!packed || regard_pack_mask(&pairs, batch, heads, p.q_len, p.kv_len, packed, p.threads) != REGARD_OK)
      return false;
    p.mask.words = packed;
    p.mask.word_batch_stride = batch > 1 ? heads * blocks : 0;
    p.mask.word_head_stride = heads > 1 ? blocks : 0;
    return true;
  }
};

/* ----------------------------------------------------------- the lse, and what rounding took from it
 *
 * torch passes one tensor from forward to backward. Its memory holds behind the lse (batch, length, heads) what
 * rounding took from it (batch, heads, length), and then a mark that only this lse has: a copy that somebody made of
 * the tensor alone has none, and backward goes without. */

uint64_t mark_of(const void *lse, int64_t bytes) {
  uint64_t mark = 0x7265676172642121u;
  const char *from = (const char *)lse;
  for (int64_t at = 0; at < bytes; at += 4) {
    uint32_t word;
    memcpy(&word, from + at, 4);
    mark += word * (uint64_t)(2 * at + 1);
  }
  return mark;
}

template <class T>
void swap_heads_and_length(const T *from, int64_t batch, int64_t first, int64_t second, T *to) {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < first; ++i)
      for (int64_t j = 0; j < second; ++j) to[(b * second + j) * first + i] = from[(b * first + i) * second + j];
}

void swap_heads_and_length(const void *from, int64_t batch, int64_t first, int64_t second, void *to, int64_t bytes) {
  if (bytes == 8)
    swap_heads_and_length((const double *)from, batch, first, second, (double *)to);
  else
    swap_heads_and_length((const float *)from, batch, first, second, (float *)to);
}

struct Lse {
  Tensor whole; /* all of the memory */
  char *low;
  char *memory;
};

Lse made_lse(const Call &call) {
  const int64_t bytes = call.lengths() * call.working_bytes(), size = 2 * call.lengths() + 8 / call.working_bytes();
  const int64_t one = 1;
  const Tensor whole = made(1, &size, &one, call.working());
  char *memory = (char *)const_cast<void *>(memory_of(whole));
  return {whole, memory + bytes, memory};
}

/* The tensor that torch keeps; `plain` is (batch, heads, length). */
Tensor finished_lse(const Call &call, const Lse &lse, const void *plain) {
  const regard_problem &p = call.p;
  const int64_t bytes = call.lengths() * call.working_bytes();
  swap_heads_and_length(plain, p.batch, p.heads, p.q_len, lse.memory, call.working_bytes());
  const uint64_t mark = mark_of(lse.memory, bytes);
  memcpy(lse.memory + 2 * bytes, &mark, sizeof mark);
  const int64_t sizes[3] = {p.batch, p.heads, p.q_len}, strides[3] = {p.heads * p.q_len, 1, p.heads};
  Tensor shown;
  if (torch.reinterpret(lse.whole, 3, sizes, strides, 0, &shown)) raise(torch.get_reason());
  torch.delete_tensor(lse.whole);
  return shown;
}

/* lse and low of a tensor that forward gave, or that somebody made of it. */
bool read_lse(const Call &call, Tensor tensor, Memory *plain, regard_backward_arguments *a) {
  const regard_problem &p = call.p;
  const int64_t count = call.lengths(), bytes = count * call.working_bytes();
  View lse;
  if (!look(tensor, &lse) || lse.dims != 3 || lse.dtype != call.working() || lse.size() != count) return false;
  const int64_t wanted[3] = {p.heads * p.q_len, 1, p.heads};
  for (int i = 0; i < 3; ++i)
    if (lse.sizes[i] > 1 && lse.strides[i] != wanted[i]) return false;
  a->lse = plain->get(bytes);
  if (!a->lse) return false;
  swap_heads_and_length(lse.data, p.batch, p.q_len, p.heads, plain->data, call.working_bytes());
  int64_t size, offset;
  if (torch.get_storage_size(tensor, &size) || torch.get_storage_offset(tensor, &offset)) return false;
  if (offset == 0 && size == 2 * bytes + 8) {
    uint64_t mark;
    memcpy(&mark, (const char *)lse.data + 2 * bytes, sizeof mark);
    if (mark == mark_of(lse.data, bytes)) a->lse_low = (const char *)lse.data + bytes;
  }
  return true;
}

/* ---------------------------------------------------------------------------------- the kernels */

void release(Value tensor) { torch.delete_tensor(tensor_in(tensor)); }

void release_optional(Value optional, bool is_tensor) {
  Value *value = reinterpret_cast<Value *>(optional);
  if (!value) return;
  if (is_tensor) release(*value);
  torch.delete_value(value);
}

/* By regard's operator of the same signature, which is Python. Its complaint comes back as "Error: complaint", and below
 * that where in Python it was raised. */
void pass_on(const char *name, Value *stack) {
  if (torch.call(name, "", stack, kWrittenFor) == 0) return;
  static thread_local char reason[2048];
  const char *told = torch.get_reason(), *colon = strstr(told, "Error: "), *place = strstr(told, "\n\nAt:");
  if (colon && (!place || colon < place)) told = colon + strlen("Error: ");
  const size_t length = place ? (size_t)(place - told) : strlen(told);
  snprintf(reason, sizeof reason, "%.*s", (int)(length < sizeof reason ? length : sizeof reason - 1), told);
  raise(reason);
}

bool forward(const Value *stack, Value *results) {
  Call call;
  Memory plain;
  if (!call.fill(stack, number_in(stack[3]), stack[4] != 0, stack[5], stack[6])) return false;
  void *lse_memory = plain.get(call.lengths() * call.working_bytes());
  if (!lse_memory) return false;
  const Tensor output = made_like(call.query, call.p.value_dim);
  const Lse lse = made_lse(call);
  const regard_forward_results to{rows_of(output), lse_memory, lse.low};
  if (regard_forward(&call.p, &to) != REGARD_OK) { /* what is not finite is put right in Python, which also complains */
    torch.delete_tensor(output);
    torch.delete_tensor(lse.whole);
    return false;
  }
  results[0] = value_of(output);
  results[1] = value_of(finished_lse(call, lse, lse_memory));
  return true;
}

void forward_kernel(Value *stack, uint64_t, uint64_t) {
  Value results[2];
  if (!forward(stack, results)) return pass_on("regard::flash_attention_for_cpu", stack);
  for (int i = 0; i < 3; ++i) release(stack[i]);
  release_optional(stack[5], true);
  release_optional(stack[6], false);
  memcpy(stack, results, sizeof results);
}

bool backward(const Value *stack, Value *results) {
  Call call;
  View grad_output, output;
  Memory plain;
  regard_backward_arguments a = {};
  if (!call.fill(stack + 1, number_in(stack[6]), stack[7] != 0, stack[8], stack[9])) return false;
  if (!look(tensor_in(stack[0]), &grad_output) || !look(tensor_in(stack[4]), &output)) return false;
  if (!call.gave(output) || !call.gave(grad_output)) return false;
  if (!read_lse(call, tensor_in(stack[5]), &plain, &a)) return false;
  const Tensor made[3] = {made_gradient(call.query), made_gradient(call.key), made_gradient(call.value)};
  a.output = output.rows(), a.grad_output = grad_output.rows();
  a.grad_query = rows_of(made[0]), a.grad_key = rows_of(made[1]), a.grad_value = rows_of(made[2]);
  a.table_splits = regard_backward_splits(&call.p);
  const bool done = regard_backward(&call.p, &a) == REGARD_OK;
  for (int i = 0; i < 3; ++i) {
    if (done)
      results[i] = value_of(made[i]);
    else
      torch.delete_tensor(made[i]);
  }
  return done;
}

void backward_kernel(Value *stack, uint64_t, uint64_t) {
  Value results[3];
  if (!backward(stack, results)) return pass_on("regard::flash_attention_for_cpu_backward", stack);
  for (int i = 0; i < 6; ++i) release(stack[i]);
  release_optional(stack[8], true);
  release_optional(stack[9], false);
  memcpy(stack, results, sizeof results);
}

} // namespace

extern "C" {

const char *regard_torch_function(int32_t index) {
  return index >= 0 && index < (int32_t)(sizeof names / sizeof *names) ? names[index] : nullptr;
}

void *regard_torch_register(const void *const *functions) {
  memcpy(&torch, functions, sizeof torch);
  Library library;
  if (torch.make_library("aten", "CPU", "torch_kernels.cpp", __LINE__, &library)) return nullptr;
  if (torch.add_kernel(library, "_scaled_dot_product_flash_attention_for_cpu", forward_kernel, kWrittenFor) ||
      torch.add_kernel(library, "_scaled_dot_product_flash_attention_for_cpu_backward", backward_kernel, kWrittenFor)) {
    torch.delete_library(library);
    return nullptr;
  }
  return library;
}

void regard_torch_unregister(void *library) { torch.delete_library((Library)library); }
}
