// The module pconv_ext._C: loading it registers the CPU kernels (csrc/cpu/*.cpp) of the operators that
// pconv_ext/ops/*.py declare. `instruction_set` says which of them this processor runs, `algorithm` and
// `set_algorithm` are the switch of pconv_ext/_backends/algorithm.py.
#include <Python.h>

#include "cpu/problem.h"

namespace {

using pconv::Algorithm;

PyObject* algorithm(PyObject*, PyObject*) {
  return PyUnicode_FromString(pconv::algorithm() == Algorithm::direct ? "direct" : "auto");
}

PyObject* set_algorithm(PyObject*, PyObject* name) {
  const auto is = [name](const char* other) {
    return PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, other) == 0;
  };
  if (!is("auto") && !is("direct")) return PyErr_Format(PyExc_ValueError, "unknown algorithm %R", name);
  pconv::set_algorithm(is("direct") ? Algorithm::direct : Algorithm::automatic);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {{"algorithm", algorithm, METH_NOARGS, nullptr},
                         {"set_algorithm", set_algorithm, METH_O, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

}  // namespace

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static struct PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module) PyModule_AddStringConstant(module, "instruction_set", pconv::instruction_set());
  return module;
}
