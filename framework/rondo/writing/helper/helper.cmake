# The program of the helper processes (writers::process). rondo_core carries it inside, so that a program which uses
# Rondo is still one file. Where the static libraries are installed it is linked statically: then it starts faster and
# runs wherever the program does.
include(CheckCXXSourceCompiles)
include(CMakePushCheckState)

find_library(RONDO_STATIC_DEFLATE NAMES libdeflate.a)
find_library(RONDO_STATIC_ZSTD NAMES libzstd.a)
mark_as_advanced(RONDO_STATIC_DEFLATE RONDO_STATIC_ZSTD)
if(RONDO_STATIC_DEFLATE AND RONDO_STATIC_ZSTD)
  # Sanitizers, for example, refuse.
  cmake_push_check_state(RESET)
  set(CMAKE_REQUIRED_INCLUDES "${Deflate_INCLUDE_DIR}" "${Zstd_INCLUDE_DIR}")
  set(CMAKE_REQUIRED_LINK_OPTIONS -static)
  set(CMAKE_REQUIRED_LIBRARIES "${RONDO_STATIC_DEFLATE}" "${RONDO_STATIC_ZSTD}" Threads::Threads)
  check_cxx_source_compiles("
#include <libdeflate.h>
#include <thread>
#include <zstd.h>
int main() {
  std::thread([] {}).join();
  return static_cast<int>(libdeflate_crc32(0, nullptr, 0) + ZSTD_isError(ZSTD_versionNumber()));
}" RONDO_STATIC_HELPER)
  cmake_pop_check_state()
endif()

add_executable(rondo_writing_helper rondo/writing/helper/main.cpp $<TARGET_OBJECTS:rondo_files>)
set_target_properties(rondo_writing_helper PROPERTIES OUTPUT_NAME rondo-writer
                      RUNTIME_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/writing_helper")
target_include_directories(rondo_writing_helper PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
target_compile_features(rondo_writing_helper PRIVATE cxx_std_20)
target_link_libraries(rondo_writing_helper PRIVATE rondo_options fmt::fmt-header-only Threads::Threads)
target_link_options(rondo_writing_helper PRIVATE -s)
if(RONDO_STATIC_HELPER)
  target_link_options(rondo_writing_helper PRIVATE -static)
  target_link_libraries(rondo_writing_helper PRIVATE "${RONDO_STATIC_DEFLATE}" "${RONDO_STATIC_ZSTD}")
else()
  target_link_libraries(rondo_writing_helper PRIVATE Deflate::Deflate Zstd::Zstd)
endif()

set(rondo_helper_program "${CMAKE_CURRENT_BINARY_DIR}/writing_helper/program")
set(rondo_helper_image "${CMAKE_CURRENT_BINARY_DIR}/writing_helper/program_image.cpp")
add_custom_command(OUTPUT "${rondo_helper_program}"
                   COMMAND "${CMAKE_COMMAND}" -E copy "$<TARGET_FILE:rondo_writing_helper>" "${rondo_helper_program}"
                   DEPENDS rondo_writing_helper COMMENT "Copying the helper program" VERBATIM)
configure_file(rondo/writing/helper/program_image.cpp.in "${rondo_helper_image}" @ONLY)
# Optimisation at link time loses symbols that only the assembler knows.
set_source_files_properties("${rondo_helper_image}" PROPERTIES OBJECT_DEPENDS "${rondo_helper_program}"
                            COMPILE_OPTIONS -fno-lto
                            SKIP_UNITY_BUILD_INCLUSION ON)
# Optimisation at link time would change the order in which its variable is made.
set_source_files_properties(rondo/writing/helper/registry.cpp PROPERTIES COMPILE_OPTIONS -fno-lto)
target_sources(rondo_core PRIVATE rondo/writing/helper/process.cpp rondo/writing/helper/registry.cpp
                                  "${rondo_helper_image}" "${rondo_helper_program}")
