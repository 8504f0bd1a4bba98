# What this LibTorch can do for several ranks. Without its headers of c10d everything else still builds, and a group of
# more than one rank is an error; without Gloo's headers, groups need a backend that the program brings.
#
# Variables: RONDO_WITH_C10D, RONDO_WITH_GLOO.
option(RONDO_USE_C10D "Several ranks, where LibTorch has the headers of c10d" ON)
option(RONDO_USE_GLOO "c10d's backend Gloo for them, where its headers are installed" ON)
find_path(RONDO_C10D_INCLUDE_DIR torch/csrc/distributed/c10d/ProcessGroup.hpp HINTS ${TORCH_INCLUDE_DIRS})
mark_as_advanced(RONDO_C10D_INCLUDE_DIR)
set(RONDO_WITH_C10D OFF)
set(RONDO_WITH_GLOO OFF)
if(RONDO_USE_C10D AND RONDO_C10D_INCLUDE_DIR)
  set(RONDO_WITH_C10D ON)
  if(RONDO_USE_GLOO)
    find_package(Gloo QUIET CONFIG)
  endif()
  if(TARGET gloo)
    set(RONDO_WITH_GLOO ON)
  endif()
endif()
message(STATUS "Distributed training: c10d ${RONDO_WITH_C10D}, Gloo ${RONDO_WITH_GLOO}")
