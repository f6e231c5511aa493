// Linears over floats, the choice between all of them, and what Python calls.
#include "linear_run.h"

namespace kd {

void linear_integers(const Work& work, int num_tokens, int first_panel, int end_panel);  // linear_integers.cc

void linear(const Matrix& matrix, const void* prepared, int num_tokens, int first_panel, int end_panel, const float* bias, float* y,
            size_t y_stride, bool adds, const void* next) {
  if (num_tokens == 0) return;
  const Work work = {matrix, prepared_layout(matrix, num_tokens), static_cast<const uint8_t*>(prepared), bias, y, y_stride, adds,
                     static_cast<const uint8_t*>(next)};
  if (matrix.kind == Kind::f32)
    run<FloatSteps, false>(work, num_tokens, first_panel, end_panel);
  else if (matrix.kind == Kind::bf16)
    run<PairSteps, false>(work, num_tokens, first_panel, end_panel);
  else
    linear_integers(work, num_tokens, first_panel, end_panel);
}

}  // namespace kd

using namespace kd;

KD_EXPORT size_t kd_prepared_bytes(const Matrix* matrix, int num_tokens) { return prepared_bytes(*matrix, num_tokens); }

KD_EXPORT void kd_prepare(const Matrix* matrix, const float* x, size_t x_stride, int num_tokens, void* prepared) {
  prepare(*matrix, x, x_stride, 0, num_tokens, num_tokens, prepared);
}

KD_EXPORT void kd_linear(const Matrix* matrix, const void* prepared, int num_tokens, int first_panel, int end_panel, const float* bias,
                         float* y, size_t y_stride, bool adds) {
  linear(*matrix, prepared, num_tokens, first_panel, end_panel, bias, y, y_stride, adds);
}
