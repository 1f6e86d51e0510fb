// Picks, at run time, one of the copies of a function that cmake/simd.cmake compiled per instruction set.
//
//   cpu.cpp       namespace showo { namespace SHOWO_ISA { Status foo_cpu(const FooParams& params) { ... } } }
//   dispatch.cpp  namespace showo { SHOWO_DISPATCH_ISA(Status, foo_cpu, (const FooParams& params), (params)) }
//   params.h      namespace showo { Status foo_cpu(const FooParams& params); }
#pragma once

#include "common/cpu_features.h"

#if defined(__x86_64__)
#define SHOWO_DISPATCH_ISA(result, function, parameters, arguments) \
  namespace baseline {                                              \
  result function parameters;                                       \
  }                                                                 \
  namespace avx2 {                                                  \
  result function parameters;                                       \
  }                                                                 \
  namespace avx512 {                                                \
  result function parameters;                                       \
  }                                                                 \
  result function parameters {                                      \
    switch (active_isa()) {                                         \
      case Isa::kAvx512:                                            \
        return avx512::function arguments;                          \
      case Isa::kAvx2:                                              \
        return avx2::function arguments;                            \
      default:                                                      \
        return baseline::function arguments;                        \
    }                                                               \
  }
#else
#define SHOWO_DISPATCH_ISA(result, function, parameters, arguments) \
  namespace baseline {                                              \
  result function parameters;                                       \
  }                                                                 \
  result function parameters { return baseline::function arguments; }
#endif
