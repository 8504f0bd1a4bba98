# Tests and examples run once or a few times, and where they compute, LibTorch does: what the optimiser would save in them,
# it costs several times over.
set(RONDO_PROGRAM_OPTIONS "$<$<CONFIG:Release>:-O1>" CACHE STRING
    "Options that tests and examples are compiled with, after those of the build type (a list)")
mark_as_advanced(RONDO_PROGRAM_OPTIONS)

# rondo_compile_quickly(TARGET [LIBTORCH])
#
# Compiles a program with these options. With LIBTORCH its files start with the precompiled header, of which programs have
# one of their own: GCC optimises all that follows a precompiled header as the header was, whatever its options say.
function(rondo_compile_quickly target)
  target_compile_options(${target} PRIVATE ${RONDO_PROGRAM_OPTIONS})
  if(NOT "LIBTORCH" IN_LIST ARGN)
    return()
  endif()
  if(NOT TARGET rondo_program_headers)
    # A header is made for files only, so here is one.
    set(source "${PROJECT_BINARY_DIR}/program_headers.cpp")
    file(CONFIGURE OUTPUT "${source}" CONTENT "")
    add_library(rondo_program_headers OBJECT "${source}")
    target_compile_options(rondo_program_headers PRIVATE ${RONDO_PROGRAM_OPTIONS})
    target_link_libraries(rondo_program_headers PRIVATE rondo_framework rondo_options)
    target_precompile_headers(rondo_program_headers PRIVATE "${PROJECT_SOURCE_DIR}/framework/rondo/precompiled.hpp")
  endif()
  target_precompile_headers(${target} REUSE_FROM rondo_program_headers)
endfunction()
