// Any processor: 16-byte vectors (SSE2, NEON).
#include "isa_includes.h"
#define PCONV_ISA baseline
#define PCONV_VECTOR_BYTES 16
#include "isa.h"
