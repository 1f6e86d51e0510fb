# The libraries of the kernel package (docs/kernel-package.md): the objects of _C, bound to torch's stable ABI instead of
# Python. They alone need torch's headers, so they exist only where SHOWO_TORCH_DIR says where these are.
#
#   kernel_package_cpu    <SHOWO_KERNEL_DIR>/_showo_ext_cpu_<SHOWO_KERNEL_HASH>.abi3.so, without CUDA kernels
#   kernel_package_cuda   the same with them, where nvcc is

set(SHOWO_TORCH_DIR "" CACHE PATH "Folder of the torch package, to build the kernel package with")
set(SHOWO_KERNEL_DIR "${CMAKE_BINARY_DIR}/kernel_package" CACHE PATH "Where the libraries of the kernel package are put")
set(SHOWO_KERNEL_HASH "0" CACHE STRING "Tells builds apart that one process may load")
if(NOT SHOWO_TORCH_DIR)
  return()
endif()

function(showo_add_stable_library backend)
  set(name kernel_package_${backend})
  set(id _showo_ext_${backend}_${SHOWO_KERNEL_HASH})
  add_library(${name} MODULE EXCLUDE_FROM_ALL csrc/bindings/stable_abi.cpp ${ARGN})
  target_link_libraries(${name} PRIVATE showo_flags ${SHOWO_TORCH_DIR}/lib/libtorch_cpu.so)
  target_include_directories(${name} SYSTEM PRIVATE ${SHOWO_TORCH_DIR}/include)
  # The oldest torch that the library serves is 2.10, where its first need, lists and strings, came to the stable ABI.
  target_compile_definitions(${name} PRIVATE SHOWO_KERNEL_ID=${id} TORCH_TARGET_VERSION=0x020a000000000000)
  target_link_options(${name} PRIVATE -Wl,--version-script=${CMAKE_SOURCE_DIR}/cmake/exports.map)
  set_target_properties(${name} PROPERTIES
    PREFIX "" OUTPUT_NAME ${id} SUFFIX .abi3.so
    LIBRARY_OUTPUT_DIRECTORY ${SHOWO_KERNEL_DIR}
    SKIP_BUILD_RPATH ON) # torch is in the process already
  add_custom_command(TARGET ${name} POST_BUILD COMMAND ${CMAKE_STRIP} -x $<TARGET_FILE:${name}> VERBATIM)
endfunction()

# Bindings of CPU launchers alone; all other objects serve both.
add_library(showo_bindings_cpu OBJECT EXCLUDE_FROM_ALL ${showo_binding_sources})
target_link_libraries(showo_bindings_cpu PRIVATE showo_flags)
set(cpu_objects ${showo_objects})
list(FILTER cpu_objects EXCLUDE REGEX "showo_(bindings|cuda)>")
showo_add_stable_library(cpu ${cpu_objects} $<TARGET_OBJECTS:showo_bindings_cpu>)

if(SHOWO_HAS_CUDA)
  showo_add_stable_library(cuda ${showo_objects})
  target_link_libraries(kernel_package_cuda PRIVATE CUDA::cudart_static)
endif()
