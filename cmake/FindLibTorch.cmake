# Finds LibTorch through its own TorchConfig.cmake and gives it one well-behaved target.
#
# TorchConfig.cmake reports absolute library paths beside targets; behind an imported target they stay out of what
# Rondo exports. Imported target: LibTorch::LibTorch. Variables: LibTorch_FOUND, LibTorch_LIBRARIES, LibTorch_VERSION.
if(TARGET LibTorch::LibTorch)
  set(LibTorch_LIBRARIES LibTorch::LibTorch)
else()
  find_package(Torch QUIET)
  set(LibTorch_VERSION "${Torch_VERSION}")
  set(LibTorch_LIBRARIES "${TORCH_LIBRARIES}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LibTorch REQUIRED_VARS LibTorch_LIBRARIES VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "On Debian: apt-get install libtorch-dev. Elsewhere: -DCMAKE_PREFIX_PATH=/path/to/libtorch")

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  add_library(LibTorch::LibTorch INTERFACE IMPORTED)
  target_link_libraries(LibTorch::LibTorch INTERFACE ${LibTorch_LIBRARIES})
endif()
