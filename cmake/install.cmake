# Installs the libraries, the public headers, the documentation, the command-line tool, and packages for
# find_package(rondo) and pkg-config. Component "dev" is what programs are built with, "tools" the rest.
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
  install(TARGETS ${library} EXPORT ${library} COMPONENT dev ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
  install(EXPORT ${library} NAMESPACE rondo:: DESTINATION "${rondo_package_dir}" COMPONENT dev)
endforeach()
if(NOT RONDO_CORE_ONLY)
  install(TARGETS rondo_precompiled EXPORT rondo_extensions COMPONENT dev)
endif()
if(RONDO_BUILD_TOOLS)
  install(TARGETS rondo_tool COMPONENT tools RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  install(FILES "${PROJECT_SOURCE_DIR}/tools/rondo/share/rondo.1" DESTINATION "${CMAKE_INSTALL_MANDIR}/man1"
          COMPONENT tools)
  install(FILES "${PROJECT_SOURCE_DIR}/tools/rondo/share/rondo.bash"
          DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions" COMPONENT tools RENAME rondo)
  install(PROGRAMS "${PROJECT_SOURCE_DIR}/tools/check_coroutines" DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT tools)
endif()
foreach(header_dir IN LISTS rondo_header_dirs)
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/${header_dir}" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT dev
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
              ${rondo_find_modules} DESTINATION "${rondo_package_dir}" COMPONENT dev)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" "${PROJECT_SOURCE_DIR}/README.md" DESTINATION "${CMAKE_INSTALL_DOCDIR}"
        COMPONENT dev)
install(DIRECTORY "${PROJECT_SOURCE_DIR}/docs" DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT dev)

# For pkg-config. The folders are told from where the file is, so that all of it can be moved.
set(rondo_pc_dir "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
file(RELATIVE_PATH RONDO_PC_PREFIX "/prefix/${rondo_pc_dir}" /prefix)
function(rondo_install_pc name description requires cflags libs)
  set(RONDO_PC_NAME ${name})
  set(RONDO_PC_DESCRIPTION "${description}")
  set(RONDO_PC_REQUIRES "${requires}")
  set(RONDO_PC_CFLAGS "${cflags}")
  set(RONDO_PC_LIBS "${libs}")
  configure_file("${PROJECT_SOURCE_DIR}/cmake/rondo.pc.in" "${PROJECT_BINARY_DIR}/${name}.pc" @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/${name}.pc" DESTINATION "${rondo_pc_dir}" COMPONENT dev)
endfunction()
rondo_install_pc(rondo-core "coroutines, durable writing and checkpoint files, without LibTorch" "fmt spdlog libzstd"
                 "-std=c++20 -DASIO_STANDALONE -DASIO_NO_DEPRECATED -DASIO_HAS_STD_ALIGNED_ALLOC=1"
                 "-lrondo_core -ldeflate -pthread")
if(NOT RONDO_CORE_ONLY)
  # LibTorch has no file of its own.
  set(folders ${TORCH_INCLUDE_DIRS})
  list(REMOVE_ITEM folders /usr/include)
  list(TRANSFORM folders PREPEND "-I")
  list(JOIN folders " " includes)
  find_library(RONDO_TORCH_LIBRARY torch HINTS "${TORCH_INSTALL_PREFIX}/lib")
  mark_as_advanced(RONDO_TORCH_LIBRARY)
  cmake_path(GET RONDO_TORCH_LIBRARY PARENT_PATH torch_dir)
  set(gloo_library)
  if(RONDO_WITH_GLOO)
    set(gloo_library " -lgloo")
  endif()
  rondo_install_pc(rondo "${PROJECT_DESCRIPTION}" "rondo-core zlib libpng libxxhash libcurl" "${includes}"
                   "-lrondo_extensions -lrondo_framework -lrondo_core -L${torch_dir} -ltorch -ltorch_cpu -lc10${gloo_library} -lcsv -lturbojpeg")
endif()

# Packages for Debian, by `cpack` in the build folder: librondo-dev and rondo-tools.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME rondo)
set(CPACK_PACKAGE_CONTACT "the authors of Rondo <rondo@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_COMPONENTS_ALL dev)
set(CPACK_DEBIAN_DEV_PACKAGE_NAME librondo-dev)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "libasio-dev, libfmt-dev, libspdlog-dev, nlohmann-json3-dev, libdeflate-dev, libzstd-dev")
if(NOT RONDO_CORE_ONLY)
  string(APPEND CPACK_DEBIAN_DEV_PACKAGE_DEPENDS
         ", libtorch-dev, librange-v3-dev, libxxhash-dev, zlib1g-dev, libcsv-dev, libpng-dev, libturbojpeg0-dev, libcurl4-openssl-dev")
  if(RONDO_WITH_GLOO)
    string(APPEND CPACK_DEBIAN_DEV_PACKAGE_DEPENDS ", libgloo-dev")
  endif()
endif()
if(RONDO_BUILD_TOOLS)
  list(APPEND CPACK_COMPONENTS_ALL tools)
  set(CPACK_DEBIAN_TOOLS_PACKAGE_NAME rondo-tools)
  set(CPACK_DEBIAN_TOOLS_PACKAGE_SECTION science)
  # Who needs what is found by two programs that are not on every Debian machine.
  find_program(RONDO_SHLIBDEPS dpkg-shlibdeps)
  find_program(RONDO_FILE file)
  mark_as_advanced(RONDO_SHLIBDEPS RONDO_FILE)
  if(RONDO_SHLIBDEPS AND RONDO_FILE)
    set(CPACK_DEBIAN_TOOLS_PACKAGE_SHLIBDEPS ON)
  endif()
  set(CPACK_DEBIAN_TOOLS_PACKAGE_RECOMMENDS python3)
endif()
include(CPack)
