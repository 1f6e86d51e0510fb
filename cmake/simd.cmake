# showo_add_simd_source(<file>...): compiles each file once per instruction set, into the object libraries
# showo_simd_<isa>. Inside the file the macro SHOWO_ISA (baseline, avx2, avx512) names the inner namespace, and a
# dispatcher (csrc/common/dispatch.h) picks one copy at run time. Only x86-64 has more than the baseline.

set(SHOWO_ISAS baseline)
set(SHOWO_ISA_FLAGS_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND SHOWO_ISAS avx2 avx512)
  set(SHOWO_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(SHOWO_ISA_FLAGS_avx512 ${SHOWO_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
                             -mprefer-vector-width=512)
endif()

foreach(isa IN LISTS SHOWO_ISAS)
  add_library(showo_simd_${isa} OBJECT)
  target_link_libraries(showo_simd_${isa} PRIVATE showo_kernel_flags)
  target_compile_definitions(showo_simd_${isa} PRIVATE SHOWO_ISA=${isa})
  # -Wno-psabi: vectors only pass between functions of one file, never across an ABI boundary.
  target_compile_options(showo_simd_${isa} PRIVATE ${SHOWO_ISA_FLAGS_${isa}} -Wno-psabi)
  list(APPEND SHOWO_SIMD_OBJECTS $<TARGET_OBJECTS:showo_simd_${isa}>)
endforeach()

function(showo_add_simd_source)
  foreach(isa IN LISTS SHOWO_ISAS)
    target_sources(showo_simd_${isa} PRIVATE ${ARGN})
  endforeach()
endfunction()
