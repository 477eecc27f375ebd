// What the library tells about itself, without a device: so that what cannot run is refused and not launched.
#include "arguments.h"
#include "limits.h"

// The architectures it was built for, as in TORCH_CUDA_ARCH_LIST.
PCONV_EXPORTED const char* pconv_architectures() {
  return PCONV_ARCHITECTURES;
}

// What the operators may ask of the kernels, as JSON.
PCONV_EXPORTED const char* pconv_limits() {
  pconv::Answer answer;
  answer.put("branches", pconv::kMostBranches);
  answer.put("stride", pconv::kMostStride);
  return pconv::told(answer.text());
}

// Versions of CUDA, 13000 for 13.0: what it was built with, and the newest that the driver knows (0: no
// driver).
PCONV_EXPORTED int pconv_toolkit() {
#ifdef PCONV_EMULATE
  return 0;
#else
  return CUDART_VERSION;
#endif
}
PCONV_EXPORTED int pconv_driver() {
  int version = 0;
#ifndef PCONV_EMULATE
  cudaDriverGetVersion(&version);
#endif
  return version;
}

PCONV_EXPORTED const char* pconv_error(int error) {
#ifdef PCONV_EMULATE
  return error < 0 ? emulation::first_finding() : "the emulator refuses it";
#else
  return cudaGetErrorString(static_cast<cudaError_t>(error));
#endif
}
