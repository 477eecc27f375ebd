// What the library tells about itself, without a device: so that what cannot run is refused and not launched.
#include "device.h"

#define PCONV_EXPORTED extern "C" __attribute__((visibility("default")))

// The architectures it was built for, as in TORCH_CUDA_ARCH_LIST.
PCONV_EXPORTED const char* pconv_architectures() {
  return PCONV_ARCHITECTURES;
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
