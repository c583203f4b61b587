# `cmake --install` gives a package: find_package(kf), targets kf::kf and, for plug-ins, kf::plugin.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
install(TARGETS kf EXPORT kf-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS kf_plugin EXPORT kf-plugin-targets)
install(DIRECTORY include/kf DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(KF_BUILD_BENCH)
  install(TARGETS kf_bench kf_info kf_check RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(EXPORT kf-targets NAMESPACE kf:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kf)
install(EXPORT kf-plugin-targets NAMESPACE kf:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kf)
configure_package_config_file(cmake/kf-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/kf-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kf)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/kf-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/kf-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/kf-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/kf)
