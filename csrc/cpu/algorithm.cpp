// The switch that pconv_ext.set_algorithm moves. One for the process, as autograd has threads of its own.
#include <atomic>

#include "problem.h"

namespace pconv {

namespace {
std::atomic<Algorithm> chosen{Algorithm::automatic};
}

Algorithm algorithm() {
  return chosen;
}

void set_algorithm(Algorithm a) {
  chosen = a;
}

}  // namespace pconv
