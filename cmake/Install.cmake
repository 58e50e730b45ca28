# cmake --install: bin/, share/qpruner/ (shipped data) and lib/qpruner/ (LibTorch beside the engine, so
# that an image or a package needs no cache folder).
include(GNUInstallDirs)
foreach(target qpruner-server qpruner-worker qpruner)
  if(TARGET ${target})
    install(TARGETS ${target} RUNTIME DESTINATION bin COMPONENT ${target})
  endif()
endforeach()
install(DIRECTORY data/ DESTINATION share/qpruner COMPONENT qpruner-worker)
install(FILES LICENSE DESTINATION share/doc/qpruner COMPONENT qpruner-server)
if(TARGET qpruner-engine)
  set_target_properties(qpruner-engine PROPERTIES INSTALL_RPATH "$ORIGIN/../lib/qpruner")
  install(TARGETS qpruner-engine RUNTIME DESTINATION bin COMPONENT qpruner-worker)
  install(DIRECTORY "${LibTorch_ROOT}/lib/" DESTINATION lib/qpruner COMPONENT qpruner-worker
    FILES_MATCHING PATTERN "libc10.so" PATTERN "libtorch_cpu.so" PATTERN "libgomp.so*" PATTERN "libcudart.so*"
    PATTERN "libcupti.so*")
  install(DIRECTORY "${LibTorch_ROOT}/licenses" DESTINATION share/doc/qpruner COMPONENT qpruner-worker)
endif()
