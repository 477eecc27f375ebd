// Chooses the implementation that this processor can run.
#include <cstdlib>
#include <cstring>

#include "problem.h"

namespace pconv {

#define PCONV_DECLARE(isa)                   \
  namespace isa {                            \
  extern const Engine<float> engine_float;   \
  extern const Engine<double> engine_double; \
  }
PCONV_DECLARE(baseline)
#if defined(__x86_64__)
PCONV_DECLARE(avx2)
PCONV_DECLARE(avx512)
#endif

namespace {
enum class Isa { baseline, avx2, avx512 };
// The best this processor has, at most what torch's own ATEN_CPU_CAPABILITY (default, avx2, avx512) allows.
Isa detect() {
#if defined(__x86_64__)
  const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
  if (limit && !std::strcmp(limit, "default")) return Isa::baseline;
  // F16C came before AVX2 in every line of processors, and older compilers cannot ask for it.
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return Isa::baseline;
  if (limit && !std::strcmp(limit, "avx2")) return Isa::avx2;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
             ? Isa::avx512
             : Isa::avx2;
#else
  return Isa::baseline;
#endif
}
const Isa isa = detect();
}  // namespace

const char* instruction_set() {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

#if defined(__x86_64__)
#define PCONV_SELECT(T, name)                              \
  template <>                                              \
  const Engine<T>& engine<T>() {                           \
    if (isa == Isa::avx512) return avx512::name;           \
    return isa == Isa::avx2 ? avx2::name : baseline::name; \
  }
#else
#define PCONV_SELECT(T, name)    \
  template <>                    \
  const Engine<T>& engine<T>() { \
    return baseline::name;       \
  }
#endif
PCONV_SELECT(float, engine_float)
PCONV_SELECT(double, engine_double)

}  // namespace pconv
