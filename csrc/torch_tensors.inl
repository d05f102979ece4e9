/* torch_tensors.inl: torch's stable C interface (torch/csrc/stable/c/shim.h and torch/csrc/inductor/aoti_torch/c/shim.h
 * of torch 2.13), declared here again so that nothing is compiled or linked against torch: whoever registers the kernels
 * hands in the addresses. And what `torch_kernels.cpp` needs to read its tensors and to make new ones.
 */

typedef uint64_t Value; /* a number, a tensor's handle, or for an optional argument NULL or a pointer to one of these */
typedef struct TensorOpaque *Tensor;
typedef struct LibraryOpaque *Library;
typedef int32_t Failure; /* 0: none */
typedef void (*Kernel)(Value *stack, uint64_t arguments, uint64_t results);

constexpr uint64_t kWrittenFor = (uint64_t)2 << 56 | (uint64_t)13 << 48; /* torch 2.13's interface */

/* torch's functions, in the order of `names`. */
struct Torch {
  Failure (*delete_tensor)(Tensor);
  Failure (*is_defined)(Tensor, bool *);
  Failure (*get_dim)(Tensor, int64_t *);
  Failure (*get_sizes)(Tensor, int64_t **);
  Failure (*get_strides)(Tensor, int64_t **);
  Failure (*get_dtype)(Tensor, int32_t *);
  Failure (*get_storage_size)(Tensor, int64_t *);
  Failure (*get_storage_offset)(Tensor, int64_t *);
  Failure (*get_data)(Tensor, const void **);
  Failure (*empty_strided)(int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, Tensor *);
  Failure (*reinterpret)(Tensor, int64_t, const int64_t *, const int64_t *, int64_t, Tensor *);
  Failure (*call)(const char *, const char *, Value *, uint64_t);
  Failure (*delete_value)(Value *);
  Failure (*get_threads)(uint32_t *);
  const char *(*get_reason)();
  void (*check)(bool, const char *, const char *, uint32_t, const char *);
  Failure (*make_library)(const char *, const char *, const char *, uint32_t, Library *);
  Failure (*add_kernel)(Library, const char *, Kernel, uint64_t);
  Failure (*delete_library)(Library);
  int32_t (*float32)();
  int32_t (*bfloat16)();
  int32_t (*float16)();
  int32_t (*float64)();
  int32_t (*boolean)();
  int32_t (*cpu)();
};

const char *const names[] = {
    "aoti_torch_delete_tensor_object",
    "aoti_torch_is_defined",
    "aoti_torch_get_dim",
    "aoti_torch_get_sizes",
    "aoti_torch_get_strides",
    "aoti_torch_get_dtype",
    "aoti_torch_get_storage_size",
    "aoti_torch_get_storage_offset",
    "torch_get_const_data_ptr",
    "aoti_torch_empty_strided",
    "aoti_torch__reinterpret_tensor",
    "torch_call_dispatcher",
    "torch_delete_stable_ivalue",
    "torch_get_num_threads",
    "torch_exception_get_what_without_backtrace",
    "aoti_torch_check",
    "aoti_torch_library_init_impl",
    "torch_library_impl",
    "aoti_torch_delete_library_object",
    "aoti_torch_dtype_float32",
    "aoti_torch_dtype_bfloat16",
    "aoti_torch_dtype_float16",
    "aoti_torch_dtype_float64",
    "aoti_torch_dtype_bool",
    "aoti_torch_device_type_cpu",
};
static_assert(sizeof(Torch) == sizeof(names), "a name for each function");

Torch torch;

/* Never returns: torch throws its own exception through here. */
void raise(const char *reason) { torch.check(false, "regard", "torch_tensors.inl", __LINE__, reason); }

/* ------------------------------------------------------------------------------------ tensors */

struct View {
  int64_t dims = 0, sizes[4], strides[4];
  int32_t dtype = 0;
  const void *data = nullptr;

  int64_t size() const {
    int64_t product = 1;
    for (int64_t i = 0; i < dims; ++i) product *= sizes[i];
    return product;
  }
  bool has_rows() const { return dims == 4 && size() > 0 && (strides[3] == 1 || sizes[3] == 1); }
  regard_rows rows() const { return {const_cast<void *>(data), strides[0], strides[1], strides[2]}; }

  /* Broadcast to the scores: a dimension of one, or one that is missing, is shared. */
  bool pairs(const int64_t *wanted, regard_pairs *to) const {
    int64_t shared[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i < dims; ++i) {
      const int64_t at = 4 - dims + i;
      if (sizes[i] != 1 && sizes[i] != wanted[at]) return false;
      shared[at] = sizes[i] == 1 ? 0 : strides[i];
    }
    *to = {const_cast<void *>(data), shared[0], shared[1], shared[2], shared[3]};
    return true;
  }
};

/* False for a tensor that has no sizes, no memory or too many dimensions. */
bool look(Tensor tensor, View *view) {
  int64_t *sizes, *strides;
  if (torch.get_dim(tensor, &view->dims) || view->dims > 4) return false;
  if (torch.get_sizes(tensor, &sizes) || torch.get_strides(tensor, &strides)) return false;
  if (torch.get_dtype(tensor, &view->dtype) || torch.get_data(tensor, &view->data)) return false;
  memcpy(view->sizes, sizes, (size_t)view->dims * 8);
  memcpy(view->strides, strides, (size_t)view->dims * 8);
  return true;
}

Tensor made(int64_t dims, const int64_t *sizes, const int64_t *strides, int32_t dtype) {
  Tensor tensor;
  if (torch.empty_strided(dims, sizes, strides, dtype, torch.cpu(), 0, &tensor)) raise(torch.get_reason());
  return tensor;
}

/* Sizes of `rows` x width, laid out in memory in the order that `like` has, without gaps. */
Tensor made_like(const View &like, int64_t width) {
  const int64_t sizes[4] = {like.sizes[0], like.sizes[1], like.sizes[2], width};
  int64_t strides[4], step = width, order[3] = {2, 1, 0}; /* innermost first */
  for (int i = 1; i < 3; ++i)
    for (int at = i; at > 0 && like.strides[order[at]] < like.strides[order[at - 1]]; --at) {
      const int64_t other = order[at];
      order[at] = order[at - 1];
      order[at - 1] = other;
    }
  strides[3] = 1;
  for (const int64_t dim : order) {
    strides[dim] = step;
    step *= sizes[dim];
  }
  return made(4, sizes, strides, like.dtype);
}

/* The length before the heads, as torch's compiler expects gradients. */
Tensor made_gradient(const View &of) {
  const int64_t *n = of.sizes, strides[4] = {n[1] * n[2] * n[3], n[3], n[1] * n[3], 1};
  return made(4, of.sizes, strides, of.dtype);
}

const void *memory_of(Tensor tensor) {
  const void *data;
  if (torch.get_data(tensor, &data)) raise(torch.get_reason());
  return data;
}

regard_rows rows_of(Tensor tensor) {
  View view;
  if (!look(tensor, &view)) raise(torch.get_reason());
  return view.rows();
}

Tensor tensor_in(Value value) { return reinterpret_cast<Tensor>(value); }
Value value_of(Tensor tensor) { return reinterpret_cast<Value>(tensor); }

double number_in(Value value) {
  double number;
  memcpy(&number, &value, sizeof number);
  return number;
}
