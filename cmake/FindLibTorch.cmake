# Finds the LibTorch that scripts/fetch_libtorch unpacked and defines LibTorch::cpu.
#
# TorchConfig.cmake is not used: the wheel's copy insists on a CUDA toolkit. Headers come in with
# -idirafter because the wheel ships its own google/protobuf, which must lose against the system's.
# libtorch_cuda is never linked: the engine loads it at run time when a GPU is there.
set(LibTorch_ROOT "" CACHE PATH "Folder printed by scripts/fetch_libtorch")
if(NOT LibTorch_ROOT)
  execute_process(COMMAND "${PROJECT_SOURCE_DIR}/scripts/fetch_libtorch" OUTPUT_VARIABLE fetched
                  OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
  if(NOT failed)
    set(LibTorch_ROOT "${fetched}")
  endif()
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch REQUIRED_VARS LibTorch_ROOT)
if(LibTorch_FOUND AND NOT TARGET LibTorch::cpu)
  add_library(LibTorch::cpu INTERFACE IMPORTED)
  target_compile_options(LibTorch::cpu INTERFACE
    "SHELL:-idirafter ${LibTorch_ROOT}/include"
    "SHELL:-idirafter ${LibTorch_ROOT}/include/torch/csrc/api/include")
  # at::parallel_for is a template: without OpenMP in the calling file it runs on one thread. The
  # rpath below makes our libgomp.so.1 the one that LibTorch ships and uses, so there is one pool.
  target_compile_options(LibTorch::cpu INTERFACE -fopenmp)
  target_link_options(LibTorch::cpu INTERFACE -fopenmp)
  target_link_directories(LibTorch::cpu INTERFACE "${LibTorch_ROOT}/lib")
  target_link_options(LibTorch::cpu INTERFACE "LINKER:-rpath,${LibTorch_ROOT}/lib"
    "LINKER:-rpath-link,${LibTorch_ROOT}/lib" "LINKER:--no-as-needed")
  target_link_libraries(LibTorch::cpu INTERFACE c10 torch_cpu)
endif()
