#include "bindings/bindings.h"

namespace py = pybind11;

namespace showo {

void throw_if_error(const Status& status) {
  switch (status.code) {
    case StatusCode::kOk:
      return;
    case StatusCode::kInvalidArgument:
      throw py::value_error(status.message);
    case StatusCode::kUnsupported:
      PyErr_SetString(PyExc_NotImplementedError, status.message);
      throw py::error_already_set();
    case StatusCode::kCudaError:
      PyErr_SetString(PyExc_RuntimeError, status.message);
      throw py::error_already_set();
  }
}

}  // namespace showo
