/* half_precision.inl: bfloat16 and IEEE half precision, one number at a time. */

/* bfloat16: the upper half of a float. */
REGARD_INLINE float float_from_bf16(uint16_t bits) {
  const uint32_t word = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}
REGARD_INLINE uint16_t bf16_from_float(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  if (value != value) return (uint16_t)((word >> 16) | 0x40);    /* keep a NaN a NaN */
  return (uint16_t)((word + 0x7fff + ((word >> 16) & 1)) >> 16); /* to nearest, ties to even */
}

/* IEEE half precision, without relying on an instruction for it. */
REGARD_INLINE float float_from_f16(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#elif defined(__aarch64__)
  __fp16 half;
  memcpy(&half, &bits, sizeof half);
  return half;
#else
  const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = (bits >> 10) & 0x1f, mantissa = bits & 0x3ff;
  uint32_t word;
  float value;
  if (exponent == 0) {
    value = (float)mantissa * 5.9604644775390625e-8f; /* 2^-24 */
    memcpy(&word, &value, sizeof word);
    word |= sign;
  } else {
    word = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
  }
  memcpy(&value, &word, sizeof value);
  return value;
#endif
}
REGARD_INLINE uint16_t f16_from_float(float value) {
#if defined(__F16C__)
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  const __fp16 half = (__fp16)value;
  uint16_t bits;
  memcpy(&bits, &half, sizeof bits);
  return bits;
#else
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  const uint16_t sign = (uint16_t)((word >> 16) & 0x8000);
  const uint32_t magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00; /* rounds to 65536 and above */
  if (magnitude < 0x38800000) {                      /* subnormal: adding 0.5 rounds in units of 2^-24 */
    float small;
    memcpy(&small, &magnitude, sizeof small);
    small += 0.5f;
    memcpy(&word, &small, sizeof word);
    return sign | (uint16_t)(word & 0x7fff);
  }
  return sign | (uint16_t)((magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13);
#endif
}
