#include "common/status.h"

#include <cstdarg>
#include <cstdio>

namespace showo {
namespace {

Status make_status(StatusCode code, const char* format, va_list args) {
  Status status;
  status.code = code;
  std::vsnprintf(status.message, sizeof(status.message), format, args);
  return status;
}

}  // namespace

Status ok_status() { return Status{}; }

#define SHOWO_DEFINE_STATUS(function, code)                \
  Status function(const char* format, ...) {               \
    va_list args;                                          \
    va_start(args, format);                                \
    const Status status = make_status(code, format, args); \
    va_end(args);                                          \
    return status;                                         \
  }

SHOWO_DEFINE_STATUS(invalid_argument, StatusCode::kInvalidArgument)
SHOWO_DEFINE_STATUS(unsupported, StatusCode::kUnsupported)
SHOWO_DEFINE_STATUS(cuda_error, StatusCode::kCudaError)

}  // namespace showo
