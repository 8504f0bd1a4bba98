# Installs the libraries, the public headers, the command-line tool and a package for find_package(rondo).
include(CMakePackageConfigHelpers)

set(rondo_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/rondo")
set(rondo_libraries rondo_core)
set(rondo_header_dirs framework/rondo)
if(NOT RONDO_CORE_ONLY)
  list(APPEND rondo_libraries rondo_framework rondo_extensions)
  list(APPEND rondo_header_dirs extensions/rondo)
endif()

foreach(library IN LISTS rondo_libraries)
  # One export set per library: a program that asks for the core alone must not need LibTorch to be found.
  install(TARGETS ${library} EXPORT ${library} ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
                                               LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
                                               RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  install(EXPORT ${library} NAMESPACE rondo:: DESTINATION "${rondo_package_dir}")
endforeach()
if(RONDO_BUILD_TOOLS)
  install(TARGETS rondo_tool RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()
foreach(header_dir IN LISTS rondo_header_dirs)
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/${header_dir}" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
          FILES_MATCHING PATTERN "*.hpp" PATTERN precompiled.hpp EXCLUDE)
endforeach()

if(NOT RONDO_WITH_GLOO)
  set(RONDO_WITH_GLOO OFF)
endif()
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/rondo-config.cmake.in"
                              "${PROJECT_BINARY_DIR}/rondo-config.cmake" INSTALL_DESTINATION "${rondo_package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/rondo-config-version.cmake" COMPATIBILITY SameMinorVersion)
file(GLOB rondo_find_modules CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cmake/Find*.cmake")
install(FILES "${PROJECT_BINARY_DIR}/rondo-config.cmake" "${PROJECT_BINARY_DIR}/rondo-config-version.cmake"
              ${rondo_find_modules} DESTINATION "${rondo_package_dir}")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
