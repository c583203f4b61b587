# Cross-compiles for 64-bit Arm under Debian, with what scripts/arm64_sysroot.sh lays out: KF_ARM64_ROOT/host has the cross
# compiler and qemu, KF_ARM64_ROOT/target Debian's arm64 libraries, KF_ARM64_ROOT/python3 runs its Python.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES KF_ARM64_ROOT)
set(CMAKE_SYSROOT ${KF_ARM64_ROOT}/target)
set(CMAKE_C_COMPILER ${KF_ARM64_ROOT}/host/usr/bin/aarch64-linux-gnu-gcc-12)
set(CMAKE_CXX_COMPILER ${KF_ARM64_ROOT}/host/usr/bin/aarch64-linux-gnu-g++-12)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_CROSSCOMPILING_EMULATOR ${KF_ARM64_ROOT}/host/usr/bin/qemu-aarch64-static -L ${CMAKE_SYSROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
# For tests: a shorter build.
set(CMAKE_C_FLAGS_QUICK_INIT "-O1")
set(CMAKE_CXX_FLAGS_QUICK_INIT "-O1")
# The headers, which CMake does not ask a Python of another machine for.
set(Python_EXECUTABLE ${KF_ARM64_ROOT}/python3)
file(GLOB Python_INCLUDE_DIR ${CMAKE_SYSROOT}/usr/include/python3.*)
