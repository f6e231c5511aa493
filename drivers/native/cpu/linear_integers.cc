// Linears over integers, by row and in groups; a file of their own because their tiles take as long to compile as all others.
#include "linear_run.h"

namespace kd {

void linear_integers(const Work& work, int num_tokens, int first_panel, int end_panel) {
  const bool is_grouped = work.matrix.group != 0;
  if (work.matrix.kind == Kind::u8)
    (is_grouped ? run<ByteSteps, true> : run<ByteSteps, false>)(work, num_tokens, first_panel, end_panel);
  else
    (is_grouped ? run<NibbleSteps, true> : run<NibbleSteps, false>)(work, num_tokens, first_panel, end_panel);
}

}  // namespace kd
