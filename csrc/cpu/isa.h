// The whole CPU implementation for one instruction set: PCONV_ISA names it, PCONV_VECTOR_BYTES is its vector.
namespace pconv {
namespace PCONV_ISA {
namespace {
#include "vec.h"

#include "microkernels.h"

#include "passes.h"

#include "pack.h"

#include "tiles.h"

#include "bands.h"

#include "forward_dots.h"

#include "forward.h"

#include "grad_input.h"

#include "grad_weight.h"
}  // namespace

extern const Engine<float> engine_float;
extern const Engine<double> engine_double;
const Engine<float> engine_float{forward<float>, grad_input<float>, grad_weight<float>};
const Engine<double> engine_double{forward<double>, grad_input<double>, grad_weight<double>};
}  // namespace PCONV_ISA
}  // namespace pconv
