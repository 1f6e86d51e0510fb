// How a launcher's arguments become its params struct: by a table of fields, each an argument's name and the member
// that takes its value. The table knows no framework. module.cpp fills it from Python objects, stable_abi.cpp from
// torch's, and showo_ext/_native.py checks tensors against it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "common/dtype.h"

namespace showo {

// What an argument is, once its framework's wrapping is off.
union Value {
  int64_t integer;  // a bool is 0 or 1, a dtype its number
  double number;
  void* pointer;
};

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
  enum class Type { kInteger, kNumber, kBool, kPointer };

  // The member's type says what the argument must be. A typed pointer states the dtype of its tensor; the tensor of a
  // `void*` has the dtype that the argument named `dtype` tells.
  template <class T>
  Field(const char* name, T& member, const char* dtype = "dtype")
      : name_(name),
        kind_(kind_of(member, dtype)),
        type_(type_of<T>()),
        store_(&store_to<T>),
        members_{reinterpret_cast<uintptr_t>(&member)} {
    if constexpr (std::is_pointer_v<T>) is_written_ = !std::is_const_v<std::remove_pointer_t<T>>;
    if constexpr (std::is_same_v<T, DType>) low_ = 0, high_ = static_cast<int64_t>(DType::kBF16);
    if constexpr (std::is_unsigned_v<T>) low_ = 0;
    if constexpr (std::is_integral_v<T> && sizeof(T) < 8) {
      low_ = std::numeric_limits<T>::min();
      high_ = std::numeric_limits<T>::max();
    }
  }

  // A tuple of integers, one for each member.
  Field(const char* name, std::initializer_list<int64_t*> members)
      : name_(name), kind_("int[" + std::to_string(members.size()) + "]"), is_tuple_(true), store_(&store_to<int64_t>) {
    for (int64_t* member : members) members_.push_back(reinterpret_cast<uintptr_t>(member));
  }

  const std::string& name() const { return name_; }
  const std::string& kind() const { return kind_; }  // "int", "float", "bool", "dtype", "int[3]", "float32*", "dtype*"
  Type type() const { return type_; }
  bool is_tuple() const { return is_tuple_; }
  bool is_written() const { return is_written_; }  // whether the launcher may write what the pointer points to
  size_t num_values() const { return members_.size(); }

  // Whether the member holds this integer; every number and pointer fits.
  bool fits(int64_t integer) const { return low_ <= integer && integer <= high_; }

  // Writes `num_values` values to the same members of another struct, which lies `distance` bytes from that of the
  // constructor.
  void store(const Value* values, uintptr_t distance) const {
    for (const uintptr_t member : members_) store_(*values++, member + distance);
  }

 private:
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
  static constexpr Type type_of() {
    if (std::is_pointer_v<T>) return Type::kPointer;
    if (std::is_floating_point_v<T>) return Type::kNumber;
    return std::is_same_v<T, bool> ? Type::kBool : Type::kInteger;
  }

  template <class T>
  static void store_to(Value value, uintptr_t member) {
    T& target = *reinterpret_cast<T*>(member);
    if constexpr (std::is_pointer_v<T>)
      target = static_cast<T>(value.pointer);
    else if constexpr (std::is_floating_point_v<T>)
      target = static_cast<T>(value.number);
    else
      target = static_cast<T>(value.integer);
  }

  std::string name_, kind_;
  Type type_ = Type::kInteger;
  bool is_tuple_ = false, is_written_ = false;
  int64_t low_ = std::numeric_limits<int64_t>::min(), high_ = std::numeric_limits<int64_t>::max();
  void (*store_)(Value value, uintptr_t member);
  std::vector<uintptr_t> members_;  // addresses
};

using Fields = std::vector<Field>;

inline Fields operator+(Fields first, const Fields& more) {
  first.insert(first.end(), more.begin(), more.end());
  return first;
}

}  // namespace showo
