// The Python module: facts about the build, then what every bind_<op>.cpp registered.
#include <initializer_list>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "common/cpu_features.h"

namespace py = pybind11;

namespace showo {
namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = SHOWO_EXT_VERSION;
  info["compiler"] = "g++-compatible " __VERSION__;
  info["build_type"] = SHOWO_BUILD_TYPE;
  info["sanitized"] = bool(SHOWO_SANITIZED);
#if defined(SHOWO_HAS_CUDA)
  info["has_cuda"] = true;
  info["cuda_version"] = SHOWO_CUDA_VERSION;
  info["cuda_archs"] = SHOWO_CUDA_ARCHS;
#else
  info["has_cuda"] = false;
  info["cuda_version"] = "";
  info["cuda_archs"] = "";
#endif
  info["cpu_isa"] = isa_name(active_isa());
  info["cpu_isa_best"] = isa_name(best_isa());
  return info;
}

void set_cpu_isa(const std::string& name) {
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (name != isa_name(isa)) continue;
    if (!set_isa(isa)) throw py::value_error("this machine or build has no " + name + " code");
    return;
  }
  throw py::value_error("unknown instruction set '" + name + "', expected baseline, avx2 or avx512");
}

std::vector<Bind>& registered() {
  static std::vector<Bind> all;  // made by the first Registration, whichever file's comes first
  return all;
}

}  // namespace

Registration::Registration(Bind bind) { registered().push_back(bind); }

}  // namespace showo

PYBIND11_MODULE(SHOWO_MODULE_NAME, m) {
  m.doc() = "Native kernels of showo_ext; use the functions of showo_ext instead.";
  m.def("build_info", &showo::build_info, "Facts about this build and the instruction set in use.");
  m.def("set_cpu_isa", &showo::set_cpu_isa, py::arg("name"), "Selects the CPU code path; for tests.");
  m.attr("signatures") = py::dict();
  for (const showo::Bind bind : showo::registered()) bind(m);
}
