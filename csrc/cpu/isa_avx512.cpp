#if defined(__x86_64__)
#define PCONV_ISA avx512
#define PCONV_VECTOR_BYTES 64
#define PCONV_TARGET "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c"
#include "isa_engine.h"
#endif
