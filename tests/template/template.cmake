# Test-only: _C_template is _C with the template operator in it.
showo_add_operators(showo_template ${CMAKE_CURRENT_LIST_DIR}/csrc)
showo_add_module(_C_template ${showo_template_objects})
set_target_properties(_C_template PROPERTIES
  EXCLUDE_FROM_ALL ON
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/template)
if(SHOWO_HAS_CUDA)
  target_link_libraries(_C_template PRIVATE CUDA::cudart_static)
endif()
