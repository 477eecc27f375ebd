// The module pconv_ext._C: loading it registers the CPU kernels (csrc/cpu/*.cpp) of the operators that
// pconv_ext/ops/*.py declare. `instruction_set` says which of them this processor runs.
#include <Python.h>

#include "cpu/problem.h"

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static struct PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module) PyModule_AddStringConstant(module, "instruction_set", pconv::instruction_set());
  return module;
}
