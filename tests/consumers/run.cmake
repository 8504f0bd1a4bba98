# Configures, builds and runs one consumer project as its user would. Fails when any of the steps does.
function(run_step what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(NOTICE "${output}")
    message(FATAL_ERROR "${CONSUMER}: ${what} failed (${result})")
  endif()
  message(STATUS "${CONSUMER}: ${what}: done")
endfunction()

set(binary_dir "${WORK_DIR}/${CONSUMER}")
set(prefix "${WORK_DIR}/installed")
file(REMOVE_RECURSE "${binary_dir}")

if(CONSUMER STREQUAL "find_package")
  file(REMOVE_RECURSE "${prefix}")
  run_step(install "${CMAKE_COMMAND}" --install "${BUILD_DIR}" --prefix "${prefix}")
  list(PREPEND PREFIX_PATH "${prefix}")
endif()

# What cpack makes for Debian, unpacked, and a compiler that knows nothing of CMake.
if(CONSUMER STREQUAL "debian_packages")
  run_step(package "${CMAKE_CPACK_COMMAND}" -G DEB -B "${binary_dir}" --config "${BUILD_DIR}/CPackConfig.cmake")
  file(GLOB packages "${binary_dir}/librondo-dev_*.deb" "${binary_dir}/rondo-tools_*.deb")
  list(LENGTH packages count)
  if(NOT count EQUAL 2)
    message(FATAL_ERROR "expected the packages librondo-dev and rondo-tools, found: ${packages}")
  endif()
  foreach(package IN LISTS packages)
    run_step("unpack ${package}" dpkg-deb --extract "${package}" "${binary_dir}/unpacked")
  endforeach()
  foreach(file IN ITEMS share/man/man1/rondo.1 share/bash-completion/completions/rondo share/doc/rondo/docs/tutorial.md
                        bin/check_coroutines)
    if(NOT EXISTS "${binary_dir}/unpacked/usr/${file}")
      message(FATAL_ERROR "the packages lack ${file}")
    endif()
  endforeach()
  run_step(tool "${binary_dir}/unpacked/usr/bin/rondo" --version)
  set(ENV{PKG_CONFIG_PATH} "${binary_dir}/unpacked/usr/lib/pkgconfig")
  run_step(build sh -c "\"${CXX_COMPILER}\" -O0 \"${CMAKE_CURRENT_LIST_DIR}/find_package/main.cpp\" -o \"${binary_dir}/consumer\" \
                        $(pkg-config --cflags --libs rondo)")
  run_step(run "${binary_dir}/consumer")
  file(REMOVE_RECURSE "${binary_dir}/_CPack_Packages")
  return()
endif()

# Through a file, since values that are lists themselves do not survive a command line. Whether it builds is what matters
# here, not how fast it runs.
set(settings "${binary_dir}/settings.cmake")
file(WRITE "${settings}" "
set(CMAKE_BUILD_TYPE [[${BUILD_TYPE}]] CACHE STRING \"\")
set(CMAKE_CXX_FLAGS_RELEASE -O0 CACHE STRING \"\")
set(CMAKE_CXX_COMPILER [[${CXX_COMPILER}]] CACHE STRING \"\")
set(CMAKE_CXX_COMPILER_LAUNCHER [[${LAUNCHER}]] CACHE STRING \"\")
set(CMAKE_CXX_FLAGS [[${CXX_FLAGS}]] CACHE STRING \"\")
set(CMAKE_PREFIX_PATH [[${PREFIX_PATH}]] CACHE STRING \"\")
set(RONDO_SOURCE_DIR [[${SOURCE_DIR}]] CACHE STRING \"\")
")
run_step(configure "${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_LIST_DIR}/${CONSUMER}" -B "${binary_dir}" -G "${GENERATOR}"
         -C "${settings}")
run_step(build "${CMAKE_COMMAND}" --build "${binary_dir}" --target consumer)
if(NOT CONSUMER STREQUAL "fetch_content")
  run_step(run "${binary_dir}/consumer")
endif()
