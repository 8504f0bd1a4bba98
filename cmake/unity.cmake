# Files that belong together are compiled together: what they all include is then read, and what they all use is then
# instantiated, once, which is most of what a file costs.
option(RONDO_UNITY_BUILD "Compile the files of one folder together; off shows whether each file includes what it needs" ON)

# rondo_compile_as_one(TARGET)
#
# Compiles all sources of TARGET as one. Names in their anonymous namespaces must differ.
function(rondo_compile_as_one target)
  if(RONDO_UNITY_BUILD)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE BATCH UNITY_BUILD_BATCH_SIZE 0)
  endif()
endfunction()

# rondo_compile_together(TARGET NAME FILE...)
#
# The same for some of them.
function(rondo_compile_together target name)
  if(NOT RONDO_UNITY_BUILD)
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  set_source_files_properties(${ARGN} PROPERTIES UNITY_GROUP ${name})
endfunction()

# rondo_compile_folders_together(TARGET SIZE FILE...)
#
# Compiles the files of each folder together, at most SIZE of them at a time.
function(rondo_compile_folders_together target size)
  foreach(file IN LISTS ARGN)
    get_filename_component(folder "${file}" DIRECTORY)
    string(MAKE_C_IDENTIFIER "${folder}" key)
    list(APPEND keys ${key})
    list(APPEND files_${key} "${file}")
    get_filename_component(name_${key} "${folder}" NAME)
  endforeach()
  list(REMOVE_DUPLICATES keys)
  foreach(key IN LISTS keys)
    rondo_compile_in_batches(${target} ${name_${key}} ${size} ${files_${key}})
  endforeach()
endfunction()

# rondo_compile_in_batches(TARGET NAME SIZE FILE...)
#
# Compiles the files together, in as few batches of nearly equal length as there can be with at most SIZE files each.
function(rondo_compile_in_batches target name size)
  list(LENGTH ARGN count)
  math(EXPR batches "(${count} + ${size} - 1) / ${size}")
  math(EXPR length "(${count} + ${batches} - 1) / ${batches}")
  foreach(number RANGE 1 ${batches})
    math(EXPR begin "(${number} - 1) * ${length}")
    list(SUBLIST ARGN ${begin} ${length} batch)
    if(batch)
      rondo_compile_together(${target} ${name}_${number} ${batch})
    endif()
  endforeach()
endfunction()
