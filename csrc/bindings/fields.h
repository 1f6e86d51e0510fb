// How the dict of a launcher's arguments becomes its params struct: by a table of fields, each an argument's name and
// the member that takes its value. The table is also the signature that showo_ext/_native.py checks tensors against.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "common/dtype.h"

namespace showo {

// Each writes a Python value to a member, or returns false if the value is of another type or does not fit.
bool store(PyObject* value, int64_t& member);
bool store(PyObject* value, int32_t& member);
bool store(PyObject* value, uintptr_t& member);
bool store(PyObject* value, double& member);
bool store(PyObject* value, float& member);
bool store(PyObject* value, bool& member);
bool store(PyObject* value, DType& member);  // its number
bool store(PyObject* value, void*& member);  // an address (Tensor.data_ptr()), or None

// The name of the element type of a tensor, as torch writes it.
inline const char* element_name(const float*) { return "float32"; }
inline const char* element_name(const double*) { return "float64"; }
inline const char* element_name(const int64_t*) { return "int64"; }
inline const char* element_name(const int32_t*) { return "int32"; }
inline const char* element_name(const int8_t*) { return "int8"; }
inline const char* element_name(const uint8_t*) { return "uint8"; }
inline const char* element_name(const bool*) { return "bool"; }

class Field {
 public:
  // The member's type says what the argument must be. A typed pointer states the dtype of its tensor; the tensor of a
  // `void*` has the dtype that the argument named `dtype` tells.
  template <class T>
  Field(const char* name, T& member, const char* dtype = "dtype")
      : Field(name, kind_of(member, dtype), &store_to<T>, {reinterpret_cast<uintptr_t>(&member)}) {}

  // A tuple of integers, one for each member.
  Field(const char* name, std::initializer_list<int64_t*> members);

  const std::string& name() const { return name_; }
  const std::string& kind() const { return kind_; }  // "int", "float", "bool", "dtype", "int[3]", "float32*", "dtype*"
  pybind11::handle key() const { return key_; }      // the name

  // Writes `value` to the same member of another struct, which lies `distance` bytes from that of the constructor.
  bool read(PyObject* value, uintptr_t distance) const;

 private:
  using Store = bool (*)(PyObject* value, uintptr_t member);

  Field(const char* name, std::string kind, Store store, std::vector<uintptr_t> members);

  template <class T>
  static std::string kind_of(const T&, const char* dtype) {
    if constexpr (std::is_same_v<T, DType>) return "dtype";
    if constexpr (std::is_same_v<T, bool>) return "bool";
    if constexpr (std::is_integral_v<T>) return "int";
    if constexpr (std::is_floating_point_v<T>) return "float";
    if constexpr (std::is_pointer_v<T>) {
      if constexpr (std::is_void_v<std::remove_pointer_t<T>>)
        return std::string(dtype) + "*";
      else
        return std::string(element_name(T{})) + "*";
    }
  }

  template <class T>
  static bool store_to(PyObject* value, uintptr_t member) {
    if constexpr (std::is_pointer_v<T>) {
      void* pointer = nullptr;
      if (!store(value, pointer)) return false;
      *reinterpret_cast<T*>(member) = static_cast<T>(pointer);
      return true;
    } else {
      return store(value, *reinterpret_cast<T*>(member));
    }
  }

  std::string name_, kind_;
  pybind11::str key_;
  Store store_;
  std::vector<uintptr_t> members_;  // addresses
};

using Fields = std::vector<Field>;

Fields operator+(Fields first, const Fields& more);

// The table of one launcher.
class Signature {
 public:
  // fields: of the struct at `params`, which need not live on.
  Signature(const char* launcher, const Fields& fields, const void* params);

  // Throws TypeError for an argument that is missing, unknown or of the wrong type.
  void read(const pybind11::dict& arguments, void* params) const;

  // {name: kind}
  pybind11::dict kinds() const;

 private:
  std::string launcher_;
  Fields fields_;
  uintptr_t base_;
};

}  // namespace showo
