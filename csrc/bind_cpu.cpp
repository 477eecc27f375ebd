// The module pconv_ext._C: loading it registers the CPU kernels (csrc/cpu/*.cpp) of the operators that
// pconv_ext/ops/*.py declare.
#include <Python.h>

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static struct PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
