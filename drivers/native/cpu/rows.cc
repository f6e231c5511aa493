// What is done to one token's values by themselves: norms, activations, a router's choice, the greatest logit.
//
// Sums over a row go into four registers in turn and these into one, in an order that the width alone decides.
#include "functions.h"
#include "kernels.h"

namespace kd {

namespace {

constexpr int SUMS = 4;

// each(values, first, count): sixteen of the row at a time, the last ones maybe fewer.
template <typename Each>
KD_INLINE void sixteens(int width, Each each) {
  int i = 0;
  for (; i + LANES <= width; i += LANES) each(i, LANES);
  if (i < width) each(i, width - i);
}

KD_INLINE Floats take(const float* x, int n) { return n == LANES ? load(x) : load_part(x, n); }
KD_INLINE void put(float* y, Floats a, int n) { n == LANES ? store(y, a) : store_part(y, a, n); }

template <typename Term>
KD_INLINE float summed(int width, Term term) {
  Floats sums[SUMS] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
  sixteens(width, [&](int i, int n) { sums[i / LANES % SUMS] = term(i, n, sums[i / LANES % SUMS]); });
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

float inverse_rms(const float* x, float eps, int width) {
  const float squares = summed(width, [&](int i, int n, Floats so_far) {
    const Floats value = take(x + i, n);
    return fma(value, value, so_far);
  });
  return 1.0f / std::sqrt(squares / float(width) + eps);
}

KD_INLINE Floats applied(Activation function, Floats x) {
  switch (function) {
    case Activation::silu: return silu(x);
    case Activation::gelu: return gelu(x);
    default: return gelu_tanh(x);
  }
}

}  // namespace

void rms_norm(const float* x, const float* weight, float eps, int width, float* y) {
  const Floats factor = all(inverse_rms(x, eps, width));
  sixteens(width, [&](int i, int n) { put(y + i, take(x + i, n) * factor * take(weight + i, n), n); });
}

void norm_add(const float* x, const float* weight, float eps, int width, float* residual) {
  const Floats factor = all(inverse_rms(x, eps, width));
  sixteens(width, [&](int i, int n) {
    const Floats normed = take(x + i, n) * factor * take(weight + i, n);
    put(residual + i, take(residual + i, n) + normed, n);
  });
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int width, float* y) {
  const float mean = summed(width, [&](int i, int n, Floats so_far) { return so_far + take(x + i, n); }) / float(width);
  const Floats middle = all(mean);
  const float squares = summed(width, [&](int i, int n, Floats so_far) {
    const Floats away = select(lanes(0, n), take(x + i, n) - middle, all(0.0f));
    return fma(away, away, so_far);
  });
  const Floats factor = all(1.0f / std::sqrt(squares / float(width) + eps));
  sixteens(width, [&](int i, int n) {
    const Floats normed = (take(x + i, n) - middle) * factor;
    const Floats scaled = normed * take(weight + i, n);
    put(y + i, bias ? scaled + take(bias + i, n) : scaled, n);
  });
}

void add(const float* x, int width, float* residual) {
  sixteens(width, [&](int i, int n) { put(residual + i, take(residual + i, n) + take(x + i, n), n); });
}

void scale(float factor, int width, float* x) {
  const Floats by = all(factor);
  sixteens(width, [&](int i, int n) { put(x + i, take(x + i, n) * by, n); });
}

void act(Activation function, const float* x, int width, float* y) {
  sixteens(width, [&](int i, int n) { put(y + i, applied(function, take(x + i, n)), n); });
}

void act_mul(Activation function, const float* gate, const float* up, int width, float* y) {
  sixteens(width, [&](int i, int n) { put(y + i, applied(function, take(gate + i, n)) * take(up + i, n), n); });
}

void softcap(float cap, int width, float* x) {
  const Floats most = all(cap);
  sixteens(width, [&](int i, int n) { put(x + i, most * tanh(take(x + i, n) / most), n); });
}

void to_bf16(const float* x, int width, uint16_t* y) {
  for (int i = 0; i < width; i++) y[i] = bf16_of(x[i]);
}

void from_bf16(const uint16_t* x, int width, float* y) {
  int i = 0;
  for (; i + LANES <= width; i += LANES) store(y + i, from_bf16(x + i));
  for (; i < width; i++) {
    const uint32_t bits = uint32_t(x[i]) << 16;
    std::memcpy(y + i, &bits, 4);
  }
}

int argmax(const float* logits, int width) {
  Floats most = all(-INFINITE), bad = all(0.0f);
  sixteens(width, [&](int i, int n) {
    const Floats value = n == LANES ? load(logits + i) : select(lanes(0, n), load_part(logits + i, n), all(-INFINITE));
    bad = select(is_nan(value), all(1.0f), bad);
    most = greatest(value, most);
  });
  const float greatest_logit = greatest_of(most);
  if (sum(bad) > 0.0f || !(std::fabs(greatest_logit) < INFINITE)) return -1;
  int first = 0;
  while (logits[first] != greatest_logit) first++;
  return first;
}

void top_experts(const float* logits, int num_experts, int top_k, bool is_normalized, int32_t* experts, float* shares) {
  const Floats nothing = all(-INFINITE);
  Floats most = nothing, bad = all(0.0f);
  sixteens(num_experts, [&](int i, int n) {
    const Floats value = select(lanes(0, n), take(logits + i, n), nothing);
    bad = select(is_nan(value), all(1.0f), bad);
    most = greatest(value, most);
  });
  const bool is_bad = sum(bad) > 0.0f;
  const float highest = is_bad ? logits[0] : greatest_of(most);
  const float total = summed(num_experts, [&](int i, int n, Floats so_far) {
    return so_far + exp(select(lanes(0, n), take(logits + i, n) - all(highest), nothing));
  });
  float chosen_total = 0.0f;
  for (int k = 0; k < top_k; k++) {
    int best = -1;
    for (int e = 0; e < num_experts; e++) {  // the next in the order (logit descending, index ascending)
      const bool is_behind = k == 0 || logits[e] < logits[experts[k - 1]] || (logits[e] == logits[experts[k - 1]] && e > experts[k - 1]);
      if (is_behind && (best < 0 || logits[e] > logits[best])) best = e;
    }
    experts[k] = best < 0 ? k : best;  // only among NaN is there none
    float one[LANES];
    store(one, exp(all(logits[experts[k]] - highest)));
    shares[k] = is_bad ? __builtin_nanf("") : one[0];
    chosen_total += shares[k];
  }
  for (int k = 0; k < top_k; k++) shares[k] /= is_normalized ? chosen_total : total;
}

}  // namespace kd
