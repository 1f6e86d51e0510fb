// The Python module: takes what is bound as functions of a dict of arguments, without torch. A tensor is handed over as
// the object that it is; its pointer is what its method data_ptr() says.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace showo {
namespace {

bool read_integer(PyObject* object, int64_t& integer) {
  if (!PyLong_Check(object)) return false;
  int overflow = 0;
  integer = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

bool read_pointer(PyObject* object, void*& pointer) {
  static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
  pointer = nullptr;
  if (object == Py_None) return true;
  if (!PyObject_HasAttr(object, data_ptr)) return false;
  const auto address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object, data_ptr));
  if (!address) throw py::error_already_set();
  pointer = PyLong_AsVoidPtr(address.ptr());
  if (PyErr_Occurred()) throw py::error_already_set();
  return true;
}

// Writes what the object is to `value`; false if the object is of another type, or does not fit.
bool read(PyObject* object, const Field& field, Value& value) {
  switch (field.type()) {
    case Field::Type::kInteger:
      return read_integer(object, value.integer) && field.fits(value.integer);
    case Field::Type::kBool:
      value.integer = object == Py_True;
      return PyBool_Check(object);
    case Field::Type::kPointer:
      return read_pointer(object, value.pointer);
    case Field::Type::kNumber:
      if (PyFloat_Check(object)) return value.number = PyFloat_AS_DOUBLE(object), true;
      int64_t whole = 0;
      if (!read_integer(object, whole)) return false;
      value.number = static_cast<double>(whole);
      return true;
  }
  return false;
}

bool read_field(PyObject* object, const Field& field, Value* values) {
  if (!field.is_tuple()) return read(object, field, *values);
  if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != static_cast<Py_ssize_t>(field.num_values())) return false;
  for (size_t i = 0; i < field.num_values(); ++i)
    if (!read(PyTuple_GET_ITEM(object, i), field, values[i])) return false;
  return true;
}

// invalid_argument -> ValueError, unsupported -> NotImplementedError, cuda_error -> RuntimeError.
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

// A launcher as a function of a dict.
class Function {
 public:
  explicit Function(const Launcher& launcher) : launcher_(launcher) {
    for (const Field& field : launcher.fields)
      keys_.push_back(py::reinterpret_steal<py::str>(PyUnicode_InternFromString(field.name().c_str())));
  }

  // Throws TypeError for an argument that is missing, unknown or of the wrong type.
  void operator()(const py::dict& arguments) const {
    std::vector<Value> values(launcher_.num_values);
    size_t next = 0;
    for (size_t i = 0; i < keys_.size(); ++i) {
      const Field& field = launcher_.fields[i];
      PyObject* object = PyDict_GetItemWithError(arguments.ptr(), keys_[i].ptr());
      if (object == nullptr) {
        if (PyErr_Occurred()) throw py::error_already_set();
        throw py::type_error(launcher_.name + " lacks the argument " + field.name());
      }
      if (!read_field(object, field, &values[next])) {
        const std::string got = py::repr(object);
        throw py::type_error(launcher_.name + ": " + field.name() + " is " + got + ", expected " + field.kind());
      }
      next += field.num_values();
    }
    if (arguments.size() != keys_.size()) refuse_unknown(arguments);
    Status status;
    {
      py::gil_scoped_release no_gil;
      status = launcher_.run(values.data());
    }
    throw_if_error(status);
  }

 private:
  void refuse_unknown(const py::dict& arguments) const {
    for (const auto& [name, value] : arguments) {
      bool known = false;
      for (const py::str& key : keys_) known = known || key.equal(name);
      if (!known) throw py::type_error(launcher_.name + " has no argument " + std::string(py::str(name)));
    }
  }

  const Launcher& launcher_;
  std::vector<py::str> keys_;
};

py::object call_sizes(const SizeFunction& function, const py::kwargs& arguments) {
  std::vector<int64_t> values;
  for (const std::string& name : function.arguments) {
    if (!arguments.contains(name)) throw py::type_error(function.name + " lacks the argument " + name);
    values.push_back(arguments[name.c_str()].cast<int64_t>());
  }
  if (arguments.size() != values.size()) throw py::type_error(function.name + " has no such argument");
  const std::vector<int64_t> results = function.call(values.data());
  if (results.size() == 1) return py::int_(results[0]);
  py::tuple tuple(results.size());
  for (size_t i = 0; i < results.size(); ++i) tuple[i] = results[i];
  return tuple;
}

}  // namespace
}  // namespace showo

PYBIND11_MODULE(SHOWO_MODULE_NAME, m) {
  m.doc() = "Native kernels of showo_ext; use the functions of showo_ext instead.";
  const auto loads = py::module_::import("json").attr("loads");
  m.attr("signatures") = loads(showo::signatures());
  m.def(
      "build_info", [loads] { return loads(showo::build_info()); },
      "Facts about this build and the instruction set in use.");
  m.def(
      "set_cpu_isa", [](const std::string& name) { showo::throw_if_error(showo::set_cpu_isa(name)); }, py::arg("name"),
      "Selects the CPU code path; for tests.");
  for (const showo::Launcher& launcher : showo::bindings().launchers)
    m.def(launcher.name.c_str(), showo::Function(launcher));
  for (const showo::SizeFunction& function : showo::bindings().sizes)
    m.def(function.name.c_str(), [&function](const py::kwargs& a) { return showo::call_sizes(function, a); });
}
