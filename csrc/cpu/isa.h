// The instruction set that a file compiles the kernels for. isa_*.cpp asks for it: PCONV_ISA is its name,
// PCONV_VECTOR_BYTES its vector, PCONV_TARGET what compilers call it. Where nobody asks, as in an editor,
// that is what any processor has (SSE2, NEON).
#pragma once

#ifndef PCONV_ISA
#define PCONV_ISA baseline
#define PCONV_VECTOR_BYTES 16
#endif

// Raise the instruction set for what stands between them and lower it again. No header is included in
// between: what it defines would be shared with code that must run on any processor.
#define PCONV_PRAGMA(...) _Pragma(#__VA_ARGS__)
#define PCONV_PRAGMA_OF(...) PCONV_PRAGMA(__VA_ARGS__)
#if !defined(PCONV_TARGET)
#define PCONV_BEGIN_ISA
#define PCONV_END_ISA
#elif defined(__clang__)
#define PCONV_BEGIN_ISA \
  PCONV_PRAGMA_OF(clang attribute push(__attribute__((target(PCONV_TARGET))), apply_to = function))
#define PCONV_END_ISA PCONV_PRAGMA(clang attribute pop)
#else
#define PCONV_BEGIN_ISA PCONV_PRAGMA(GCC push_options) PCONV_PRAGMA_OF(GCC target(PCONV_TARGET))
#define PCONV_END_ISA PCONV_PRAGMA(GCC pop_options)
#endif
