#if defined(__x86_64__)
#define PCONV_ISA avx2
#define PCONV_VECTOR_BYTES 32
#define PCONV_TARGET "avx2,fma,f16c"
#include "isa_engine.h"
#endif
