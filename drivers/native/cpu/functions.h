// exp, tanh, erf and the activations, sixteen at a time. Errors were measured over 6 million numbers of the range, all levels, against
// float64 (tests/drivers/native/test_rows.py measures again).
#pragma once

#include "isa.h"

namespace kd {

constexpr float INFINITE = __builtin_inff();

// Within 1.1 ulp up to 88.72, infinite from there on; 0 below -87.33, where results would not be normal numbers. exp(0) is 1, exactly.
KD_INLINE Floats exp(Floats x) {
  const Floats held = least(all(89.0f), greatest(all(-88.0f), x));  // NaN passes
  const Floats n = nearest(held * all(1.44269504f));
  const Floats r = fma(n, all(-1.42860677e-6f), fma(n, all(-0.693145752f), held));
  Floats p = fma(all(1.395058702e-3f), r, all(8.368946612e-3f));
  p = fma(p, r, all(4.166620597e-2f));
  p = fma(p, r, all(1.666651815e-1f));
  p = fma(p, r, all(0.5f));
  const Floats y = times_power(fma(p, r * r, r) + all(1.0f), n);
  return select(is_less(x, all(-87.33f)), all(0.0f), y);
}

// Within 1.4 ulp.
KD_INLINE Floats tanh(Floats x) {
  const Floats t = absolute(x), s = x * x;
  Floats p = fma(all(-5.910625216e-3f), s, all(2.080981247e-2f));
  p = fma(p, s, all(-5.378813297e-2f));
  p = fma(p, s, all(1.333197802e-1f));
  p = fma(p, s, all(-3.333330154e-1f));
  const Floats near = fma(p * s, x, x);
  const Floats far = all(1.0f) - all(2.0f) / (exp(t + t) + all(1.0f));
  return select(is_less(t, all(0.6f)), near, with_sign(far, x));
}

// Within 1.2 ulp. Source of the coefficients: N. Juffa's erff.
KD_INLINE Floats erf(Floats x) {
  const Floats t = absolute(x), s = x * x;
  Floats near = fma(all(-5.96761703e-4f), s, all(4.99119423e-3f));
  near = fma(near, s, all(-2.67681349e-2f));
  near = fma(near, s, all(1.12819925e-1f));
  near = fma(near, s, all(-3.76125336e-1f));
  near = fma(near, s, all(1.28379166e-1f));
  near = fma(near, x, x);
  Floats far = fma(all(-1.72853470e-5f), t, all(3.83197126e-4f));
  far = fma(far, s, fma(all(-3.88396438e-3f), t, all(2.42546219e-2f)));
  far = fma(far, t, all(-1.06777877e-1f));
  far = fma(far, t, all(-6.34846687e-1f));
  far = fma(far, t, all(-1.28717512e-1f));
  far = all(1.0f) - exp(fma(far, t, all(0.0f) - t));
  return select(is_less(t, all(0.927734375f)), near, with_sign(far, x));
}

KD_INLINE Floats silu(Floats x) { return x / (exp(all(0.0f) - x) + all(1.0f)); }

KD_INLINE Floats gelu(Floats x) { return all(0.5f) * x * (erf(x * all(0.707106781f)) + all(1.0f)); }

KD_INLINE Floats gelu_tanh(Floats x) {
  const Floats inner = all(0.797884561f) * fma(all(0.044715f) * x * x, x, x);
  return all(0.5f) * x * (tanh(inner) + all(1.0f));
}

}  // namespace kd
