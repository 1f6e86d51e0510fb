// Status: what every launcher returns. A plain struct, so that no code is shared between files compiled for
// different instruction sets; bindings turn it into a Python exception.
#pragma once

#include <cstdint>

namespace showo {

enum class StatusCode : int32_t { kOk = 0, kInvalidArgument = 1, kUnsupported = 2, kCudaError = 3 };

struct Status {
  StatusCode code = StatusCode::kOk;
  char message[256] = {0};

  bool ok() const { return code == StatusCode::kOk; }
};

// printf-style constructors; a message longer than the buffer is cut.
Status ok_status();
Status invalid_argument(const char* format, ...) __attribute__((format(printf, 1, 2)));
Status unsupported(const char* format, ...) __attribute__((format(printf, 1, 2)));
Status cuda_error(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace showo

// Hands a failing status to the caller.
#define SHOWO_RETURN_IF_ERROR(expression)                \
  do {                                                   \
    const ::showo::Status status_of_call = (expression); \
    if (!status_of_call.ok()) return status_of_call;     \
  } while (0)

// Returns invalid_argument unless the condition holds; the message is a printf format with its values.
#define SHOWO_CHECK_ARGUMENT(condition, ...)                         \
  do {                                                               \
    if (!(condition)) return ::showo::invalid_argument(__VA_ARGS__); \
  } while (0)
