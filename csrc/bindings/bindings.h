// Shared by the binding files. A binding converts a dict of Python arguments into a params struct, calls one launcher
// without the GIL, and turns its status into an exception; it checks nothing but the arguments' names and types.
//
//   Fields my_op_fields(MyOpParams& p) { return {{"x", p.x}, {"out", p.out}, {"dtype", p.dtype}, {"count", p.count}}; }
//
//   SHOWO_BINDINGS(m) {
//     def_launcher(m, "my_op_cpu", my_op_fields, my_op_cpu);
//   #if defined(SHOWO_HAS_CUDA)
//     def_launcher(m, "my_op_cuda", my_op_fields, my_op_cuda);
//   #endif
//   }
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>

#include "bindings/fields.h"
#include "common/dtype.h"
#include "common/status.h"

namespace showo {

// Adds functions to the module when Python loads it: once in every csrc/bindings/bind_<op>.cpp, outside any namespace
// but showo. New files are found by their place; nothing lists them.
using Bind = void (*)(pybind11::module_& m);
struct Registration {
  explicit Registration(Bind bind);
};
#define SHOWO_BINDINGS(m)                     \
  static void bind(pybind11::module_& m);     \
  static const Registration registered(bind); \
  static void bind(pybind11::module_& m)

// invalid_argument -> ValueError, unsupported -> NotImplementedError, cuda_error -> RuntimeError.
void throw_if_error(const Status& status);

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

// Every launcher exists for the CPU, (params, int num_threads), and for CUDA, (params, void* stream).
template <class Params>
struct Call {
  Params params{};
  int num_threads = 0;
  uintptr_t stream = 0;

  Field place(int) { return {"num_threads", num_threads}; }
  Field place(void*) { return {"stream", stream}; }
  Status run(Status (*launcher)(const Params&, int)) const { return launcher(params, num_threads); }
  Status run(Status (*launcher)(const Params&, void*)) const {
    return launcher(params, reinterpret_cast<void*>(stream));
  }
};

// Adds the launcher to the module, under `name`, and its signature to the dict `signatures` there.
template <class Params, class Place>
void def_launcher(pybind11::module_& m, const char* name, Fields (*fields_of)(Params&),
                  Status (*launcher)(const Params&, Place)) {
  Call<Params> example;
  const Signature signature(name, fields_of(example.params) + Fields{example.place(Place{})}, &example);
  m.attr("signatures")[name] = signature.kinds();
  m.def(name, [signature, launcher](const pybind11::dict& arguments) {
    Call<Params> call;
    signature.read(arguments, &call);
    launch([&] { return call.run(launcher); });
  });
}

}  // namespace showo
