// Picks, at run time, one of the copies of a function that cmake/operators.cmake compiled per instruction set.
//
//   params.h  namespace showo { Status foo_cpu(const FooParams& params, int num_threads); }
//   cpu.cpp   namespace showo {
//             namespace SHOWO_ISA { Status foo_cpu(const FooParams& params, int num_threads) { ... } }
//             SHOWO_CPU_LAUNCHER(foo_cpu, FooParams)
//             }
//
// Functions of another form are picked in a file that is compiled once, by SHOWO_DISPATCH_ISA.
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

// The launcher that picks: defined in the baseline's copy of the file, which every machine can run.
#if defined(SHOWO_ISA_IS_BASELINE)
#define SHOWO_CPU_LAUNCHER(function, Params) \
  SHOWO_DISPATCH_ISA(Status, function, (const Params& params, int num_threads), (params, num_threads))
#else
#define SHOWO_CPU_LAUNCHER(function, Params)
#endif
