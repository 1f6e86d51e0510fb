// Shared by the binding files. A binding converts Python arguments into a params struct, calls one launcher without the
// GIL, and turns its status into an exception; it checks nothing itself.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/status.h"

namespace showo {

// One function per csrc/bindings/bind_<op>.cpp, called from module.cpp.
void bind_codebook(pybind11::module_& m);
void bind_resample(pybind11::module_& m);
void bind_omni_attention(pybind11::module_& m);
void bind_rope_qkv(pybind11::module_& m);

// invalid_argument -> ValueError, unsupported -> NotImplementedError, cuda_error -> RuntimeError.
void throw_if_error(const Status& status);

// Tensors arrive as integers (Tensor.data_ptr()).
template <class T = void>
T* as_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Runs the launcher with the GIL released and throws if it failed.
template <class Launcher>
void launch(Launcher&& launcher) {
  Status status;
  {
    pybind11::gil_scoped_release no_gil;
    status = launcher();
  }
  throw_if_error(status);
}

}  // namespace showo
