#include "bindings/fields.h"

namespace py = pybind11;

namespace showo {

bool store(PyObject* value, int64_t& member) {
  if (!PyLong_Check(value)) return false;
  int overflow = 0;
  member = PyLong_AsLongLongAndOverflow(value, &overflow);
  return overflow == 0;
}

bool store(PyObject* value, int32_t& member) {
  int64_t wide = 0;
  if (!store(value, wide) || wide != static_cast<int32_t>(wide)) return false;
  member = static_cast<int32_t>(wide);
  return true;
}

bool store(PyObject* value, uintptr_t& member) {
  if (!PyLong_Check(value)) return false;
  member = PyLong_AsUnsignedLongLong(value);
  if (!PyErr_Occurred()) return true;
  PyErr_Clear();
  return false;
}

bool store(PyObject* value, double& member) {
  if (PyFloat_Check(value)) {
    member = PyFloat_AS_DOUBLE(value);
    return true;
  }
  int64_t whole = 0;
  if (!store(value, whole)) return false;
  member = static_cast<double>(whole);
  return true;
}

bool store(PyObject* value, float& member) {
  double wide = 0.0;
  if (!store(value, wide)) return false;
  member = static_cast<float>(wide);
  return true;
}

bool store(PyObject* value, bool& member) {
  member = value == Py_True;
  return PyBool_Check(value);
}

bool store(PyObject* value, DType& member) {
  int32_t number = 0;
  if (!store(value, number) || number < 0 || number > static_cast<int32_t>(DType::kBF16)) return false;
  member = static_cast<DType>(number);
  return true;
}

bool store(PyObject* value, void*& member) {
  uintptr_t address = 0;
  if (value != Py_None && !store(value, address)) return false;
  member = reinterpret_cast<void*>(address);
  return true;
}

Field::Field(const char* name, std::string kind, Store store, std::vector<uintptr_t> members)
    : name_(name),
      kind_(std::move(kind)),
      key_(py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name))),
      store_(store),
      members_(std::move(members)) {}

Field::Field(const char* name, std::initializer_list<int64_t*> members)
    : Field(name, "int[" + std::to_string(members.size()) + "]", &store_to<int64_t>, {}) {
  for (int64_t* member : members) members_.push_back(reinterpret_cast<uintptr_t>(member));
}

bool Field::read(PyObject* value, uintptr_t distance) const {
  if (kind_.back() != ']') return store_(value, members_[0] + distance);
  if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != static_cast<Py_ssize_t>(members_.size())) return false;
  for (size_t i = 0; i < members_.size(); ++i)
    if (!store_(PyTuple_GET_ITEM(value, i), members_[i] + distance)) return false;
  return true;
}

Fields operator+(Fields first, const Fields& more) {
  first.insert(first.end(), more.begin(), more.end());
  return first;
}

Signature::Signature(const char* launcher, const Fields& fields, const void* params)
    : launcher_(launcher), fields_(fields), base_(reinterpret_cast<uintptr_t>(params)) {
  if (kinds().size() != fields_.size()) throw std::logic_error(launcher_ + " names an argument twice");
}

py::dict Signature::kinds() const {
  py::dict result;
  for (const Field& field : fields_) result[field.key()] = field.kind();
  return result;
}

void Signature::read(const py::dict& arguments, void* params) const {
  const uintptr_t distance = reinterpret_cast<uintptr_t>(params) - base_;
  for (const Field& field : fields_) {
    PyObject* value = PyDict_GetItemWithError(arguments.ptr(), field.key().ptr());
    if (value == nullptr) {
      if (PyErr_Occurred()) throw py::error_already_set();
      throw py::type_error(launcher_ + " lacks the argument " + field.name());
    }
    if (field.read(value, distance)) continue;
    const std::string got = py::repr(value);
    throw py::type_error(launcher_ + ": " + field.name() + " is " + got + ", expected " + field.kind());
  }
  if (arguments.size() == fields_.size()) return;
  const py::dict known = kinds();
  for (const auto& [name, value] : arguments)
    if (!known.contains(name)) throw py::type_error(launcher_ + " has no argument " + std::string(py::str(name)));
}

}  // namespace showo
