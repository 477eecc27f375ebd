// Headers of the implementation, to be included before an isa_*.cpp raises the instruction set: what they
// define is shared with code that must run on any processor.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "../pixel.h"
#include "problem.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define PCONV_X86 1
#else
#define PCONV_X86 0
#endif
