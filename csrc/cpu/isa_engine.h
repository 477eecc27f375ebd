// The engine of one instruction set, its parts in reading order. Only isa_*.cpp includes it, since it defines
// the engine.
#pragma once
#include "isa.h"
#include "problem.h"
#include "vec.h"
#include "microkernels.h"
#include "passes.h"
#include "pack.h"
#include "tiles.h"
#include "bands.h"
#include "depthwise.h"
#include "depthwise_planes.h"
#include "depthwise_last.h"
#include "depthwise_passes.h"
#include "winograd_transforms.h"
#include "winograd.h"
#include "winograd_input.h"
#include "winograd_forward.h"
#include "forward_dots.h"
#include "forward_few_outputs.h"
#include "forward_rows.h"
#include "forward.h"
#include "prepacked.h"
#include "grad_input_axis.h"
#include "grad_input_rows.h"
#include "winograd_grad_input.h"
#include "grad_input.h"
#include "grad_weight_band.h"
#include "winograd_grad_weight.h"
#include "grad_weight_few_outputs.h"
#include "grad_weight.h"

namespace pconv::PCONV_ISA {

extern const Engine<float> engine_float;
extern const Engine<double> engine_double;
const Engine<float> engine_float{forward<float>, pack<float>, grad_input<float>, grad_weight<float>};
const Engine<double> engine_double{forward<double>, pack<double>, grad_input<double>, grad_weight<double>};

}  // namespace pconv::PCONV_ISA
