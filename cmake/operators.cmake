# showo_add_operators(<name> <folder>): the objects of every operator below <folder>, in the variable <name>_objects.
# New files are picked up by their place alone:
#
#   <op>/cpu.cpp, <op>/cpu_*.cpp   once per instruction set, into the object libraries <name>_simd_<isa>
#   <op>/*.cpp                     once, into <name>_host
#   <op>/*.cu                      with nvcc, into <name>_cuda
#   bindings/*.cpp                 once, into <name>_bindings, but for what makes a module or a library of them
#
# Inside a file compiled once per instruction set, the macro SHOWO_ISA (baseline, avx2, avx512) names the inner
# namespace, and csrc/common/dispatch.h picks one copy at run time. Only x86-64 has more than the baseline.

set(SHOWO_ISAS baseline)
set(SHOWO_ISA_FLAGS_baseline -DSHOWO_ISA_IS_BASELINE)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND SHOWO_ISAS avx2 avx512)
  set(SHOWO_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(SHOWO_ISA_FLAGS_avx512 ${SHOWO_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
                             -mprefer-vector-width=512)
endif()

function(showo_add_objects target folder)
  add_library(${target} OBJECT ${ARGN})
  target_include_directories(${target} PRIVATE ${folder})
  set(objects ${objects} $<TARGET_OBJECTS:${target}> PARENT_SCOPE)
endfunction()

function(showo_add_operators name folder)
  file(GLOB simd_sources CONFIGURE_DEPENDS ${folder}/*/cpu.cpp ${folder}/*/cpu_*.cpp)
  list(FILTER simd_sources EXCLUDE REGEX "/csrc/common/")
  foreach(isa IN LISTS SHOWO_ISAS)
    showo_add_objects(${name}_simd_${isa} ${folder} ${simd_sources})
    target_link_libraries(${name}_simd_${isa} PRIVATE showo_kernel_flags)
    target_compile_definitions(${name}_simd_${isa} PRIVATE SHOWO_ISA=${isa})
    # -Wno-psabi: vectors only pass between functions of one file, never across an ABI boundary.
    target_compile_options(${name}_simd_${isa} PRIVATE ${SHOWO_ISA_FLAGS_${isa}} -Wno-psabi)
  endforeach()

  file(GLOB host_sources CONFIGURE_DEPENDS ${folder}/*/*.cpp)
  list(FILTER host_sources EXCLUDE REGEX "/bindings/")
  list(REMOVE_ITEM host_sources ${simd_sources})
  if(host_sources)
    showo_add_objects(${name}_host ${folder} ${host_sources})
    target_link_libraries(${name}_host PRIVATE showo_kernel_flags)
  endif()

  file(GLOB binding_sources CONFIGURE_DEPENDS ${folder}/bindings/*.cpp)
  list(FILTER binding_sources EXCLUDE REGEX "/(module|stable_abi).cpp$")
  showo_add_objects(${name}_bindings ${folder} ${binding_sources})
  target_link_libraries(${name}_bindings PRIVATE showo_flags)
  target_compile_definitions(${name}_bindings PRIVATE $<$<BOOL:${SHOWO_HAS_CUDA}>:SHOWO_HAS_CUDA=1>)
  set(${name}_binding_sources ${binding_sources} PARENT_SCOPE)

  if(SHOWO_HAS_CUDA)
    file(GLOB cuda_sources CONFIGURE_DEPENDS ${folder}/*/*.cu)
    showo_add_objects(${name}_cuda ${folder} ${cuda_sources})
    target_link_libraries(${name}_cuda PRIVATE showo_flags)
  endif()
  set(${name}_objects ${objects} PARENT_SCOPE)
endfunction()
