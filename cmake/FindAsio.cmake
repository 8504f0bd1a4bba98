# Finds standalone Asio (header only; Debian ships neither a CMake package nor a .pc file for it).
#
# Imported target: asio::asio. Variables: Asio_FOUND, Asio_INCLUDE_DIR, Asio_VERSION.
find_path(Asio_INCLUDE_DIR NAMES asio.hpp)
mark_as_advanced(Asio_INCLUDE_DIR)

if(Asio_INCLUDE_DIR)
  file(STRINGS "${Asio_INCLUDE_DIR}/asio/version.hpp" asio_version_line REGEX "#define ASIO_VERSION [0-9]+")
  string(REGEX MATCH "[0-9]+" asio_version_number "${asio_version_line}")
  math(EXPR asio_major "${asio_version_number} / 100000")
  math(EXPR asio_minor "${asio_version_number} / 100 % 1000")
  math(EXPR asio_patch "${asio_version_number} % 100")
  set(Asio_VERSION "${asio_major}.${asio_minor}.${asio_patch}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Asio REQUIRED_VARS Asio_INCLUDE_DIR VERSION_VAR Asio_VERSION)

if(Asio_FOUND AND NOT TARGET asio::asio)
  find_package(Threads REQUIRED)
  add_library(asio::asio INTERFACE IMPORTED)
  target_include_directories(asio::asio SYSTEM INTERFACE "${Asio_INCLUDE_DIR}")
  target_compile_definitions(asio::asio INTERFACE ASIO_STANDALONE ASIO_NO_DEPRECATED)
  # Asio 1.22 notices std::aligned_alloc only if a header of libstdc++ came before its own: files that differ in the order
  # of their includes would allocate coroutine frames in one way and free them in another.
  target_compile_definitions(asio::asio INTERFACE ASIO_HAS_STD_ALIGNED_ALLOC=1)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 15)
    # Asio 1.22 looks for <experimental/coroutine> under clang 14, although <coroutine> of libstdc++ works there.
    target_compile_definitions(asio::asio INTERFACE ASIO_HAS_CO_AWAIT=1 ASIO_HAS_STD_COROUTINE=1)
  endif()
  target_link_libraries(asio::asio INTERFACE Threads::Threads)
endif()
