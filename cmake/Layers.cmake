# Targets of QPruner, with the one-way dependencies of docs/architecture.md enforced.
#
#   qpruner_library(NAME LAYER layer SOURCES files... [DEPS targets...])
#   qpruner_binary (NAME LAYER layer SOURCES files... [DEPS targets...])
#   qpruner_test   (NAME LAYER layer SOURCES files... [DEPS targets...] [LABELS ...])
#
# A target names its layer; depending on a target of a layer that the table does not allow, or on an
# outside library that the table does not grant, stops the configure step. A test may also use the
# `testing` layer (tests/testing), which holds fakes.

set(QPRUNER_LAYERS_base    base)
set(QPRUNER_LAYERS_proto   base proto)
set(QPRUNER_LAYERS_search  base search)
set(QPRUNER_LAYERS_net     base net)
set(QPRUNER_LAYERS_server  base net proto search server)
set(QPRUNER_LAYERS_worker  base net proto worker)
set(QPRUNER_LAYERS_engine  base proto engine)
set(QPRUNER_LAYERS_client  base net proto client)
set(QPRUNER_LAYERS_testing base proto testing)
# Measurements put pieces of several layers side by side.
set(QPRUNER_LAYERS_bench   base search engine bench)
# End-to-end tests drive real binaries through the public API.
set(QPRUNER_LAYERS_tests   base proto client testing)

# Which outside libraries a layer must never link (regular expressions over target names).
set(QPRUNER_FORBIDDEN_base    "LibTorch|gRPC|SQLite|PostgreSQL|Eigen|CURL")
set(QPRUNER_FORBIDDEN_net     "LibTorch|gRPC|protobuf|SQLite|PostgreSQL|Eigen")
set(QPRUNER_FORBIDDEN_search  "LibTorch|gRPC|protobuf|SQLite|PostgreSQL")
set(QPRUNER_FORBIDDEN_server  "LibTorch")
set(QPRUNER_FORBIDDEN_worker  "LibTorch|SQLite|PostgreSQL")
set(QPRUNER_FORBIDDEN_engine  "gRPC|SQLite|PostgreSQL|CURL")
set(QPRUNER_FORBIDDEN_client  "LibTorch|SQLite|PostgreSQL")

function(_qpruner_check_layer name layer)
  if(NOT DEFINED QPRUNER_LAYERS_${layer})
    message(FATAL_ERROR "${name}: unknown layer '${layer}'")
  endif()
  set_property(GLOBAL APPEND PROPERTY QPRUNER_LAYERED_TARGETS ${name})
  set_target_properties(${name} PROPERTIES QPRUNER_LAYER ${layer} QPRUNER_DEPS "${ARGN}")
endfunction()

# Called once at the end of the configure step, when every target exists.
function(qpruner_enforce_layers)
  get_property(targets GLOBAL PROPERTY QPRUNER_LAYERED_TARGETS)
  foreach(name IN LISTS targets)
    get_target_property(layer ${name} QPRUNER_LAYER)
    get_target_property(deps ${name} QPRUNER_DEPS)
    get_target_property(is_test ${name} QPRUNER_IS_TEST)
    set(allowed ${QPRUNER_LAYERS_${layer}})
    if(is_test)
      list(APPEND allowed testing)
    endif()
    foreach(dep IN LISTS deps)
      if(NOT dep)
        continue()
      endif()
      if(QPRUNER_FORBIDDEN_${layer} AND dep MATCHES "${QPRUNER_FORBIDDEN_${layer}}")
        message(FATAL_ERROR "${name} (layer ${layer}) must not link ${dep}: see cmake/Layers.cmake")
      endif()
      if(TARGET ${dep})
        get_target_property(dep_layer ${dep} QPRUNER_LAYER)
        if(dep_layer AND NOT dep_layer IN_LIST allowed)
          message(FATAL_ERROR "${name} (layer ${layer}) must not depend on ${dep} (layer ${dep_layer}): see cmake/Layers.cmake")
        endif()
      endif()
    endforeach()
  endforeach()
endfunction()

# Thread-sanitizer builds: every executable gets the definitions that make Abseil's locks visible.
function(_qpruner_show_locks name)
  if(QPRUNER_SANITIZE MATCHES "thread")
    target_sources(${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests/testing/tsan_absl_mutex.cc")
    target_link_libraries(${name} PRIVATE absl::synchronization absl::time ${CMAKE_DL_LIBS})
  endif()
endfunction()

# Programs that must outlive a wall clock that is set: base/monotonic_waits.cc says why.
function(qpruner_wait_monotonically)
  if(NOT QPRUNER_SANITIZE)
    foreach(name IN LISTS ARGN)
      target_sources(${name} PRIVATE "${PROJECT_SOURCE_DIR}/base/monotonic_waits.cc")
      target_link_libraries(${name} PRIVATE ${CMAKE_DL_LIBS})
    endforeach()
  endif()
endfunction()

function(qpruner_library name)
  cmake_parse_arguments(A "" "LAYER" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${A_SOURCES})
  target_include_directories(${name} PUBLIC "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PUBLIC ${A_DEPS} PRIVATE qpruner_warnings)
  _qpruner_share_grpc_headers(${name} ${A_LAYER} qpruner_grpc_headers)
  _qpruner_check_layer(${name} ${A_LAYER} ${A_DEPS})
endfunction()

function(qpruner_binary name)
  cmake_parse_arguments(A "" "LAYER" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${A_DEPS} qpruner_warnings)
  _qpruner_share_grpc_headers(${name} ${A_LAYER} qpruner_grpc_headers)
  _qpruner_show_locks(${name})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
  _qpruner_check_layer(${name} ${A_LAYER} ${A_DEPS})
endfunction()

function(qpruner_test name)
  cmake_parse_arguments(A "" "LAYER;TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT QPRUNER_BUILD_TESTS)
    return()
  endif()
  add_executable(${name} ${A_SOURCES})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${A_DEPS} GTest::gmock_main GTest::gtest qpruner_warnings
                        qpruner_test_code)
  _qpruner_share_grpc_headers(${name} ${A_LAYER} qpruner_grpc_test_headers)
  _qpruner_show_locks(${name})
  set_target_properties(${name} PROPERTIES QPRUNER_IS_TEST TRUE
                        RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  _qpruner_check_layer(${name} ${A_LAYER} ${A_DEPS})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS "${A_LAYER};${A_LABELS}"
    # Threads that spin while they wait make LibTorch tens of times slower when tests share the cores.
    ENVIRONMENT "QPRUNER_BIN_DIR=${CMAKE_BINARY_DIR}/bin;QPRUNER_SOURCE_DIR=${PROJECT_SOURCE_DIR};OMP_WAIT_POLICY=PASSIVE")
endfunction()
