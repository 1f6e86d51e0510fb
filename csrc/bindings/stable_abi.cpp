// The library of the kernel package (docs/kernel-package.md): takes what is bound as operators of torch's stable ABI,
// in the namespace SHOWO_KERNEL_ID. One library serves every Python, and every torch from TORCH_TARGET_VERSION on.
//
//   launcher(Tensor? q, Tensor(a1!)? out, int[] sizes, ..., int num_threads) -> (int status, str message)
//   size_function(int rows, ...) -> int
//   signatures() -> str;  build_info() -> str;  set_cpu_isa(str name) -> (int status, str message)
//
// A status travels as a result, since all that an exception could become behind torch is a RuntimeError. The stream and
// the number of threads are arguments as they are for module.cpp, so nothing here needs a torch that has CUDA.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <stdexcept>

#include "bindings/bindings.h"

namespace showo {
namespace {

using torch::stable::Tensor;
using torch::stable::detail::from;
using torch::stable::detail::to;

// ---- schemas

std::string schema(const Launcher& launcher) {
  std::string arguments;
  for (size_t i = 0; i < launcher.fields.size(); ++i) {
    const Field& field = launcher.fields[i];
    std::string type = field.type() == Field::Type::kNumber ? "float"
                       : field.type() == Field::Type::kBool ? "bool"
                                                            : "int";
    if (field.is_tuple()) type = "int[]";
    if (field.type() == Field::Type::kPointer)
      type = field.is_written() ? "Tensor(a" + std::to_string(i) + "!)?" : "Tensor?";
    arguments += (i ? ", " : "") + type + " " + field.name();
  }
  return launcher.name + "(" + arguments + ") -> (int status, str message)";
}

std::string schema(const SizeFunction& function) {
  std::string arguments, results = "int";
  for (const std::string& name : function.arguments) arguments += (arguments.empty() ? "int " : ", int ") + name;
  for (size_t i = 1; i < function.num_results; ++i) results += ", int";
  return function.name + "(" + arguments + ") -> " + (function.num_results == 1 ? results : "(" + results + ")");
}

// ---- calls: each takes its arguments off torch's stack, and owns them, and leaves its results there

void return_status(const Status& status, StableIValue* stack) {
  stack[0] = from(static_cast<int64_t>(status.code));
  stack[1] = from(std::string(status.message));
}

// Reads one field; a tensor goes to `tensors`, which keeps it alive. False if an integer does not fit.
bool read_field(StableIValue argument, const Field& field, Value* values, std::vector<Tensor>& tensors) {
  if (field.is_tuple()) {
    const auto integers = to<std::vector<int64_t>>(argument);
    if (integers.size() != field.num_values()) return false;
    for (const int64_t integer : integers) (values++)->integer = integer;
    return true;
  }
  switch (field.type()) {
    case Field::Type::kInteger:
      values->integer = to<int64_t>(argument);
      return field.fits(values->integer);
    case Field::Type::kNumber:
      values->number = to<double>(argument);
      return true;
    case Field::Type::kBool:
      values->integer = to<bool>(argument);
      return true;
    case Field::Type::kPointer:
      values->pointer = nullptr;
      if (const auto tensor = to<std::optional<Tensor>>(argument)) {
        values->pointer = field.is_written() ? tensor->mutable_data_ptr() : const_cast<void*>(tensor->const_data_ptr());
        tensors.push_back(*tensor);
      }
      return true;
  }
  return false;
}

void call_launcher(size_t index, StableIValue* stack) {
  const Launcher& launcher = bindings().launchers[index];
  std::vector<Value> values(launcher.num_values);
  std::vector<Tensor> tensors;
  const Field* refused = nullptr;
  size_t next = 0;
  for (size_t i = 0; i < launcher.fields.size(); ++i) {  // to the end, whatever is refused: every argument is owned
    const Field& field = launcher.fields[i];
    if (!read_field(stack[i], field, &values[next], tensors)) refused = &field;
    next += field.num_values();
  }
  if (refused == nullptr) return return_status(launcher.run(values.data()), stack);
  const char *name = launcher.name.c_str(), *kind = refused->kind().c_str();
  return_status(invalid_argument("%s: %s does not fit, expected %s", name, refused->name().c_str(), kind), stack);
}

void call_sizes(size_t index, StableIValue* stack) {
  const SizeFunction& function = bindings().sizes[index];
  std::vector<int64_t> values;
  for (size_t i = 0; i < function.arguments.size(); ++i) values.push_back(to<int64_t>(stack[i]));
  for (const int64_t result : function.call(values.data())) *stack++ = from(result);
}

void call_set_cpu_isa(StableIValue* stack, uint64_t, uint64_t) {
  return_status(set_cpu_isa(to<std::string>(*stack)), stack);
}
void call_signatures(StableIValue* stack, uint64_t, uint64_t) { *stack = from(signatures()); }
void call_build_info(StableIValue* stack, uint64_t, uint64_t) { *stack = from(build_info()); }

// ---- torch takes plain functions, without state: one for each place in a list

using Boxed = void (*)(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);
constexpr size_t kMaxBound = 64;

template <void (*call)(size_t, StableIValue*), size_t... I>
Boxed boxed(size_t index, std::index_sequence<I...>) {
  static constexpr Boxed all[] = {[](StableIValue* stack, uint64_t, uint64_t) { call(I, stack); }...};
  if (index >= kMaxBound) throw std::logic_error("more is bound than kMaxBound of stable_abi.cpp allows");
  return all[index];
}

template <void (*call)(size_t, StableIValue*)>
Boxed boxed(size_t index) {
  return boxed<call>(index, std::make_index_sequence<kMaxBound>{});
}

void implement_launchers(torch::stable::detail::StableLibrary& m, const std::string& ending) {
  const std::vector<Launcher>& launchers = bindings().launchers;
  for (size_t i = 0; i < launchers.size(); ++i) {
    const std::string& name = launchers[i].name;
    const bool ends =
        name.size() > ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0;
    if (ends) m.impl(name.c_str(), boxed<call_launcher>(i));
  }
}

}  // namespace
}  // namespace showo

STABLE_TORCH_LIBRARY_FRAGMENT(SHOWO_KERNEL_ID, m) {
  for (const showo::Launcher& launcher : showo::bindings().launchers) m.def(showo::schema(launcher).c_str());
  for (const showo::SizeFunction& function : showo::bindings().sizes) m.def(showo::schema(function).c_str());
  m.def("signatures() -> str");
  m.def("build_info() -> str");
  m.def("set_cpu_isa(str name) -> (int status, str message)");
}

STABLE_TORCH_LIBRARY_IMPL(SHOWO_KERNEL_ID, CPU, m) { showo::implement_launchers(m, "_cpu"); }
STABLE_TORCH_LIBRARY_IMPL(SHOWO_KERNEL_ID, CUDA, m) { showo::implement_launchers(m, "_cuda"); }

// Without a tensor there is no device to choose by.
STABLE_TORCH_LIBRARY_IMPL(SHOWO_KERNEL_ID, CompositeExplicitAutograd, m) {
  const std::vector<showo::SizeFunction>& sizes = showo::bindings().sizes;
  for (size_t i = 0; i < sizes.size(); ++i) m.impl(sizes[i].name.c_str(), showo::boxed<showo::call_sizes>(i));
  m.impl("signatures", showo::call_signatures);
  m.impl("build_info", showo::call_build_info);
  m.impl("set_cpu_isa", showo::call_set_cpu_isa);
}
