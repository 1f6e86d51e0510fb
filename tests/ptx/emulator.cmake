# Test infrastructure, built only when asked for (`make emulator`): the PTX emulator, and the objects of the
# extension and of the template operator, linked against the emulated CUDA runtime instead of the real one.
add_subdirectory(${CMAKE_CURRENT_LIST_DIR}/emulator ${CMAKE_BINARY_DIR}/emulator EXCLUDE_FROM_ALL)
add_custom_target(emulator DEPENDS showo_ptx _C_template)
if(SHOWO_HAS_CUDA)
  showo_add_module(_C_emulated ${showo_template_objects})
  target_link_libraries(_C_emulated PRIVATE showo_ptx)
  set_target_properties(_C_emulated PROPERTIES
    EXCLUDE_FROM_ALL ON
    CUDA_RUNTIME_LIBRARY None
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/emulator)
  add_dependencies(emulator _C_emulated)
endif()
