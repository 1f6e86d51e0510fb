// What the kernels show to a framework: launchers and functions of sizes, as tables that know no framework. module.cpp
// makes a Python module of them, stable_abi.cpp operators of torch. A binding checks nothing but the arguments' names
// and types.
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

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/fields.h"
#include "common/dtype.h"
#include "common/status.h"

namespace showo {

struct Launcher {
  std::string name;
  Fields fields;
  size_t num_values;                        // of all fields
  std::function<Status(const Value*)> run;  // with the values in the order of the fields, each of which fits
};

// An integer or several, computed from integers: how large a workspace is, into how many parts a launcher cuts its
// work.
struct SizeFunction {
  std::string name;
  std::vector<std::string> arguments;
  std::function<std::vector<int64_t>(const int64_t*)> call;
  size_t num_results;
};

struct Bindings {
  std::vector<Launcher> launchers;
  std::vector<SizeFunction> sizes;
};

// All that is bound, in whichever order the linker put the files.
const Bindings& bindings();

// Adds to the bindings: once in every csrc/bindings/bind_<op>.cpp, outside any namespace but showo. New files are found
// by their place; nothing lists them.
using Bind = void (*)(Bindings& m);
struct Registration {
  explicit Registration(Bind bind);
};
// The priority is before that of every object without one, such as stable_abi.cpp's, which needs all bindings.
#define SHOWO_BINDINGS(m)                                                         \
  static void bind(Bindings& m);                                                  \
  __attribute__((init_priority(200))) static const Registration registered(bind); \
  static void bind(Bindings& m)

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

void def_launcher(Bindings& m, Launcher launcher);

template <class Params, class Place>
void def_launcher(Bindings& m, const char* name, Fields (*fields_of)(Params&),
                  Status (*launcher)(const Params&, Place)) {
  Call<Params> example;
  const Fields fields = fields_of(example.params) + Fields{example.place(Place{})};
  const uintptr_t base = reinterpret_cast<uintptr_t>(&example);
  const auto run = [fields, base, launcher](const Value* values) {
    Call<Params> call;
    for (const Field& field : fields) {
      field.store(values, reinterpret_cast<uintptr_t>(&call) - base);
      values += field.num_values();
    }
    return call.run(launcher);
  };
  def_launcher(m, Launcher{name, fields, 0, run});
}

inline std::vector<int64_t> as_sizes(int64_t size) { return {size}; }
template <size_t N>
std::vector<int64_t> as_sizes(const std::array<int64_t, N>& sizes) {
  return {sizes.begin(), sizes.end()};
}

template <class Result, class... Integers, size_t... I>
void def_sizes(Bindings& m, const char* name, std::vector<std::string> arguments, Result (*function)(Integers...),
               std::index_sequence<I...>) {
  const auto call = [function](const int64_t* values) {
    (void)values;  // where there is no argument
    return as_sizes(function(static_cast<Integers>(values[I])...));
  };
  m.sizes.push_back({name, std::move(arguments), call, sizeof(Result) / sizeof(int64_t)});
}

// arguments: the names of the function's, whose types are integers.
template <class Result, class... Integers>
void def_sizes(Bindings& m, const char* name, std::vector<std::string> arguments, Result (*function)(Integers...)) {
  static_assert(sizeof(Result) % sizeof(int64_t) == 0, "a size is an int64_t");
  def_sizes(m, name, std::move(arguments), function, std::index_sequence_for<Integers...>{});
}

// {launcher: {argument: kind of its field}}, as JSON.
std::string signatures();

// Facts about this build and the instruction set in use, as JSON.
std::string build_info();

// Selects the CPU code path, "baseline", "avx2" or "avx512"; for tests.
Status set_cpu_isa(const std::string& name);

}  // namespace showo
