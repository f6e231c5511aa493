// How likely a token is beside the likeliest, as a whole number: sums of these are the same in every order, on every number of threads and
// on every level of instructions, so a draw is, too. Nothing here uses `fma`, which the generic level rounds twice.
#pragma once

#include "functions.h"

namespace kd {

constexpr int WEIGHT_BITS = 42;       // the likeliest token weighs 2^42, one of a probability 2^43 times smaller nothing
constexpr int MOST_TOKENS = 1 << 21;  // of a vocabulary, so that sums stay below 2^63

constexpr double SHIFT = 0x1.8p52;  // adding it leaves a whole number in the low bits of a double, rounded to the nearest
constexpr int64_t SHIFT_BITS = 0x4338000000000000;

// 2^42 e^x for x <= 0, within 2 units of the last place of a float. Coefficients: expf of the Cephes library (S. L. Moshier).
KD_INLINE Floats scaled_exp(Floats x) {
  const Floats held = greatest(all(-40.0f), x);  // less than half of one weighs nothing
  const Floats n = nearest(held * all(1.44269504f));
  const Floats r = (held - n * all(0.693359375f)) - n * all(-2.12194440e-4f);
  Floats p = all(1.9875691500e-4f) * r + all(1.3981999507e-3f);
  p = p * r + all(8.3334519073e-3f);
  p = p * r + all(4.1665795894e-2f);
  p = p * r + all(1.6666665459e-1f);
  p = p * r + all(5.0000001201e-1f);
  return times_power((p * (r * r) + r) + all(1.0f), n + all(float(WEIGHT_BITS)));
}

// Sixteen sums of weights, each with SHIFT_BITS in it for every weight.
#if KD_AVX512

struct WeightSums {
  __m512i low, high;
};
KD_INLINE WeightSums no_weights() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
KD_INLINE __m512i whole(__m256 y) { return _mm512_castpd_si512(_mm512_add_pd(_mm512_cvtps_pd(y), _mm512_set1_pd(SHIFT))); }
KD_INLINE void add_weights(WeightSums& sums, Floats y) {
  sums.low = _mm512_add_epi64(sums.low, whole(low_half(y)));
  sums.high = _mm512_add_epi64(sums.high, whole(high_half(y)));
}
KD_INLINE uint32_t bits_of(Mask m) { return m.m; }

#elif KD_AVX2

struct WeightSums {
  __m256i quarter[4];
};
KD_INLINE WeightSums no_weights() {
  const __m256i zero = _mm256_setzero_si256();
  return {{zero, zero, zero, zero}};
}
KD_INLINE __m256i whole(__m128 y) { return _mm256_castpd_si256(_mm256_add_pd(_mm256_cvtps_pd(y), _mm256_set1_pd(SHIFT))); }
KD_INLINE void add_weights(WeightSums& sums, Floats y) {
  const __m128 four[] = {_mm256_castps256_ps128(y.low), _mm256_extractf128_ps(y.low, 1), _mm256_castps256_ps128(y.high),
                         _mm256_extractf128_ps(y.high, 1)};
  for (int i = 0; i < 4; i++) sums.quarter[i] = _mm256_add_epi64(sums.quarter[i], whole(four[i]));
}
KD_INLINE uint32_t bits_of(Mask m) { return uint32_t(_mm256_movemask_ps(m.low)) | uint32_t(_mm256_movemask_ps(m.high)) << 8; }

#else

struct WeightSums {
  uint64_t one[LANES];
};
KD_INLINE WeightSums no_weights() { return {}; }
KD_INLINE void add_weights(WeightSums& sums, Floats y) {
  for (int i = 0; i < LANES; i++) {
    const double shifted = double(y.v[i]) + SHIFT;
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    sums.one[i] += bits;
  }
}
KD_INLINE uint32_t bits_of(Mask m) {
  uint32_t bits = 0;
  for (int i = 0; i < LANES; i++) bits |= uint32_t(m.m[i] & 1) << i;
  return bits;
}

#endif

KD_INLINE void each_weight(const WeightSums& sums, uint64_t* weights) {  // of sixteen sums of one weight
  std::memcpy(weights, &sums, LANES * sizeof(uint64_t));
  for (int i = 0; i < LANES; i++) weights[i] -= uint64_t(SHIFT_BITS);
}

// Of all of them, where each is the sum of `num` weights.
KD_INLINE uint64_t total(const WeightSums& sums, uint64_t num) {
  uint64_t each[LANES], found = 0;
  std::memcpy(each, &sums, sizeof each);
  for (int i = 0; i < LANES; i++) found += each[i];
  return found - LANES * num * uint64_t(SHIFT_BITS);
}

}  // namespace kd
