// Sixteen floats at a time, on every level of instructions (drivers/native/isa.py). Above this file the code is the same for all levels.
//
// Only these functions round, and each rounds once (fma; on the generic level twice), in every compiler alike: contraction is off. A tail
// of fewer than sixteen is loaded with zeros behind it and goes through the same instructions (kernels.h, rule 1).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#pragma GCC diagnostic push  // gcc 12 warns of its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define KD_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__)
#define KD_AVX2 1
#else
#define KD_GENERIC 1
#endif

#define KD_INLINE inline __attribute__((always_inline))

namespace kd {

constexpr int LANES = 16;

#if KD_AVX512

struct Floats {
  __m512 v;
};
struct Mask {
  __mmask16 m;
};

KD_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
KD_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
KD_INLINE Floats load_part(const float* p, int n) { return {_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)}; }
KD_INLINE void store_part(float* p, Floats a, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), a.v); }
KD_INLINE Floats all(float x) { return {_mm512_set1_ps(x)}; }
KD_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
KD_INLINE Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
KD_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
KD_INLINE Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
KD_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
KD_INLINE Floats least(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }     // b where either is NaN
KD_INLINE Floats greatest(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
KD_INLINE Floats nearest(Floats a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
KD_INLINE Floats absolute(Floats a) { return {_mm512_abs_ps(a.v)}; }
KD_INLINE Floats with_sign(Floats a, Floats sign) { return {_mm512_or_ps(a.v, _mm512_and_ps(sign.v, _mm512_set1_ps(-0.0f)))}; }
KD_INLINE Mask is_less(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
KD_INLINE Mask is_nan(Floats a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
KD_INLINE Mask lanes(int first, int end) {  // [first, end) of sixteen, both within [0, 16]
  return {__mmask16((0xffffu << first) & ((1u << end) - 1))};
}
KD_INLINE bool any(Mask m) { return m.m != 0; }
KD_INLINE Floats select(Mask m, Floats yes, Floats no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }

// a * 2^n for whole n; a is at least 1/2 and less than 3, and what would be smaller than any normal number may come out as anything small.
KD_INLINE Floats times_power(Floats a, Floats n) { return {_mm512_scalef_ps(a.v, n.v)}; }

KD_INLINE Floats from_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
KD_INLINE Floats from_i8(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }

KD_INLINE __m256 low_half(Floats a) { return _mm512_castps512_ps256(a.v); }
KD_INLINE __m256 high_half(Floats a) { return _mm512_extractf32x8_ps(a.v, 1); }

#elif KD_AVX2

struct Floats {
  __m256 low, high;
};
struct Mask {
  __m256 low, high;
};

KD_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
KD_INLINE void store(float* p, Floats a) { _mm256_storeu_ps(p, a.low), _mm256_storeu_ps(p + 8, a.high); }
KD_INLINE Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
KD_INLINE Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
KD_INLINE Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
KD_INLINE Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
KD_INLINE Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
KD_INLINE Floats fma(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
KD_INLINE Floats least(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
KD_INLINE Floats greatest(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
KD_INLINE Floats nearest(Floats a) {
  constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, how), _mm256_round_ps(a.high, how)};
}
KD_INLINE Floats absolute(Floats a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
KD_INLINE Floats with_sign(Floats a, Floats s) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(a.low, _mm256_and_ps(sign, s.low)), _mm256_or_ps(a.high, _mm256_and_ps(sign, s.high))};
}
KD_INLINE Mask is_less(Floats a, Floats b) { return {_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ)}; }
KD_INLINE Mask is_nan(Floats a) { return {_mm256_cmp_ps(a.low, a.low, _CMP_UNORD_Q), _mm256_cmp_ps(a.high, a.high, _CMP_UNORD_Q)}; }
KD_INLINE Mask lanes(int first, int end) {
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
  const __m256i before = _mm256_set1_epi32(first - 1), behind = _mm256_set1_epi32(end);
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(low, before), _mm256_cmpgt_epi32(behind, low))),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(high, before), _mm256_cmpgt_epi32(behind, high)))};
}
KD_INLINE bool any(Mask m) { return _mm256_movemask_ps(_mm256_or_ps(m.low, m.high)) != 0; }
KD_INLINE Floats select(Mask m, Floats yes, Floats no) {
  return {_mm256_blendv_ps(no.low, yes.low, m.low), _mm256_blendv_ps(no.high, yes.high, m.high)};
}
KD_INLINE __m256 times_power_half(__m256 a, __m256 n) {  // in two steps: 2^128 alone is no number
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 one = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 other = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return _mm256_mul_ps(_mm256_mul_ps(a, one), other);
}
KD_INLINE Floats times_power(Floats a, Floats n) { return {times_power_half(a.low, n.low), times_power_half(a.high, n.high)}; }

KD_INLINE __m256 from_bf16_half(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
KD_INLINE Floats from_bf16(const uint16_t* p) { return {from_bf16_half(p), from_bf16_half(p + 8)}; }
KD_INLINE __m256 from_i8_half(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
KD_INLINE Floats from_i8(const int8_t* p) { return {from_i8_half(p), from_i8_half(p + 8)}; }

KD_INLINE __m256 low_half(Floats a) { return a.low; }
KD_INLINE __m256 high_half(Floats a) { return a.high; }

#else

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector crosses the border of this library

// The compiler's own vectors, which it cuts into what the processor has. Loops over arrays took ten times as long to compile.
typedef float SixteenFloats __attribute__((vector_size(64)));
typedef int32_t SixteenInts __attribute__((vector_size(64)));

struct Floats {
  SixteenFloats v;
};
struct Mask {
  SixteenInts m;
};

template <typename Value>
KD_INLINE Value copied_from(const void* p) {
  Value value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
template <typename Each>
KD_INLINE Floats each(Each one) {
  Floats y;
  for (int i = 0; i < LANES; i++) y.v[i] = one(i);
  return y;
}

KD_INLINE Floats load(const float* p) { return {copied_from<SixteenFloats>(p)}; }
KD_INLINE void store(float* p, Floats a) { std::memcpy(p, &a.v, sizeof a.v); }
KD_INLINE Floats all(float x) { return {SixteenFloats{} + x}; }
KD_INLINE Floats operator+(Floats a, Floats b) { return {a.v + b.v}; }
KD_INLINE Floats operator-(Floats a, Floats b) { return {a.v - b.v}; }
KD_INLINE Floats operator*(Floats a, Floats b) { return {a.v * b.v}; }
KD_INLINE Floats operator/(Floats a, Floats b) { return {a.v / b.v}; }
KD_INLINE Floats fma(Floats a, Floats b, Floats c) { return {a.v * b.v + c.v}; }
KD_INLINE Floats select(Mask m, Floats yes, Floats no) { return {m.m ? yes.v : no.v}; }
KD_INLINE Mask is_less(Floats a, Floats b) { return {a.v < b.v}; }
KD_INLINE Mask is_nan(Floats a) { return {a.v != a.v}; }
KD_INLINE Floats least(Floats a, Floats b) { return {a.v < b.v ? a.v : b.v}; }
KD_INLINE Floats greatest(Floats a, Floats b) { return {a.v > b.v ? a.v : b.v}; }
KD_INLINE Floats nearest(Floats a) {  // |a| < 2^22: nothing is left behind the point of so great a sum
  const Floats shift = all(0x1.8p23f);
  return (a + shift) - shift;
}
KD_INLINE Floats absolute(Floats a) { return {(SixteenFloats)((SixteenInts)a.v & 0x7fffffff)}; }
KD_INLINE Floats with_sign(Floats a, Floats s) {
  return {(SixteenFloats)((SixteenInts)a.v | ((SixteenInts)s.v & INT32_MIN))};
}
KD_INLINE Mask lanes(int first, int end) {
  const SixteenInts lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return {(lane >= first) & (lane < end)};
}
KD_INLINE bool any(Mask m) {
  int32_t found = 0;
  for (int i = 0; i < LANES; i++) found |= m.m[i];
  return found != 0;
}
KD_INLINE Floats times_power(Floats a, Floats n) {  // in two steps: 2^128 alone is no number; |n| < 250, or a is NaN
  const SixteenInts whole = __builtin_convertvector(n.v, SixteenInts), half = whole >> 1, rest = whole - half;
  return {a.v * (SixteenFloats)((half + 127) << 23) * (SixteenFloats)((rest + 127) << 23)};
}
KD_INLINE Floats from_bf16(const uint16_t* p) {
  typedef uint16_t Halves __attribute__((vector_size(32)));
  return {(SixteenFloats)(__builtin_convertvector(copied_from<Halves>(p), SixteenInts) << 16)};
}
KD_INLINE Floats from_i8(const int8_t* p) {
  typedef int8_t Bytes __attribute__((vector_size(16)));
  return {__builtin_convertvector(copied_from<Bytes>(p), SixteenFloats)};
}

#endif

#if !KD_AVX512
KD_INLINE Floats load_part(const float* p, int n) {
  float some[LANES] = {};
  std::memcpy(some, p, n * sizeof(float));
  return load(some);
}
KD_INLINE void store_part(float* p, Floats a, int n) {
  float some[LANES];
  store(some, a);
  std::memcpy(p, some, n * sizeof(float));
}
#endif

// Halves are put together from the outside in: the same tree on every level.
#if KD_GENERIC
KD_INLINE float sum(Floats a) {
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) a.v[i] += a.v[i + width];
  return a.v[0];
}
KD_INLINE float greatest_of(Floats a) {  // NaN is not found for sure
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) a.v[i] = a.v[i] > a.v[i + width] ? a.v[i] : a.v[i + width];
  return a.v[0];
}
#else
KD_INLINE float sum(Floats a) {
  const __m256 eight = _mm256_add_ps(low_half(a), high_half(a));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
KD_INLINE float greatest_of(Floats a) {
  const __m256 eight = _mm256_max_ps(low_half(a), high_half(a));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#endif

KD_INLINE uint16_t bf16_of(float x) {  // nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace kd
