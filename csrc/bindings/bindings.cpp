#include "bindings/bindings.h"

#include <set>
#include <stdexcept>

#include "common/cpu_features.h"

namespace showo {
namespace {

std::vector<Bind>& registered() {
  static std::vector<Bind> all;  // made by the first Registration, whichever file's comes first
  return all;
}

std::string quoted(const std::string& text) { return '"' + text + '"'; }  // no text here needs an escape

std::string object(const std::vector<std::pair<std::string, std::string>>& members) {
  std::string result;
  for (const auto& [name, value] : members) result += (result.empty() ? "" : ", ") + quoted(name) + ": " + value;
  return '{' + result + '}';
}

}  // namespace

Registration::Registration(Bind bind) { registered().push_back(bind); }

const Bindings& bindings() {
  static const Bindings all = [] {
    Bindings m;
    for (const Bind bind : registered()) bind(m);
    return m;
  }();
  return all;
}

void def_launcher(Bindings& m, Launcher launcher) {
  std::set<std::string> names;
  for (const Field& field : launcher.fields) {
    launcher.num_values += field.num_values();
    if (!names.insert(field.name()).second) throw std::logic_error(launcher.name + " names an argument twice");
  }
  m.launchers.push_back(std::move(launcher));
}

std::string signatures() {
  std::vector<std::pair<std::string, std::string>> launchers;
  for (const Launcher& launcher : bindings().launchers) {
    std::vector<std::pair<std::string, std::string>> kinds;
    for (const Field& field : launcher.fields) kinds.emplace_back(field.name(), quoted(field.kind()));
    launchers.emplace_back(launcher.name, object(kinds));
  }
  return object(launchers);
}

std::string build_info() {
  return object({
      {"version", quoted(SHOWO_EXT_VERSION)},
      {"compiler", quoted("g++-compatible " __VERSION__)},
      {"build_type", quoted(SHOWO_BUILD_TYPE)},
      {"sanitized", SHOWO_SANITIZED ? "true" : "false"},
#if defined(SHOWO_HAS_CUDA)
      {"has_cuda", "true"},
      {"cuda_version", quoted(SHOWO_CUDA_VERSION)},
      {"cuda_archs", quoted(SHOWO_CUDA_ARCHS)},
#else
      {"has_cuda", "false"},
      {"cuda_version", quoted("")},
      {"cuda_archs", quoted("")},
#endif
      {"cpu_isa", quoted(isa_name(active_isa()))},
      {"cpu_isa_best", quoted(isa_name(best_isa()))},
  });
}

Status set_cpu_isa(const std::string& name) {
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (name != isa_name(isa)) continue;
    return set_isa(isa) ? ok_status() : invalid_argument("this machine or build has no %s code", name.c_str());
  }
  return invalid_argument("unknown instruction set '%s', expected baseline, avx2 or avx512", name.c_str());
}

}  // namespace showo
