# Headers that many targets include, parsed once a build instead of once a file: gRPC and the messages
# (proto/grpc_headers.h), LibTorch (worker/engine/torch_headers.h). Files include what they use all the same:
# scripts/check compiles them without.
#
#   qpruner_reuse_precompiled(OWNER targets...)   what OWNER precompiles, for these targets too

function(qpruner_reuse_precompiled owner)
  foreach(target IN LISTS ARGN)
    if(TARGET ${target})
      target_precompile_headers(${target} REUSE_FROM ${owner})
      # The header is compiled with -fPIC, as a library; GCC takes it nowhere else, and CMake gives
      # executables -fPIE.
      set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
      target_compile_options(${target} PRIVATE -fPIC)
    endif()
  endforeach()
endfunction()

# For the functions of Layers.cmake: the layers that speak gRPC share its headers. Clang, which builds the
# fuzzers alone, does without.
function(_qpruner_share_grpc_headers name layer owner)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND layer MATCHES "^(server|worker|client|testing|tests)$")
    qpruner_reuse_precompiled(${owner} ${name})
  endif()
endfunction()
