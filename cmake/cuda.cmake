# The CUDA backend: its kernels, and the runtime, linked statically so that the library loads where there is no driver.
enable_language(CUDA)
if(CMAKE_VERSION VERSION_LESS 3.26 AND NOT TARGET CUDA::nvToolsExt)
  add_library(CUDA::nvToolsExt INTERFACE IMPORTED)  # CMake 3.25 sets a property of it, CUDA 13 has it no more
endif()
find_package(CUDAToolkit 12.8 REQUIRED)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know it
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
endif()
set_target_properties(kf PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
                                    CUDA_ARCHITECTURES "${KF_CUDA_ARCHITECTURES}")
# Host code that is constexpr (RowOffsets, scalar conversions) serves in kernels, too.
target_compile_options(kf PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --extended-lambda -Xcompiler=-Wall>)
if(KF_CUDA_UNOPTIMIZED)
  target_compile_options(kf PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcicc -O0 -Xptxas -O0>")
endif()
target_link_libraries(kf PRIVATE $<LINK_ONLY:CUDA::cudart_static>)
# For these files alone, so that the others share ccache with builds without CUDA.
file(GLOB_RECURSE KF_CUDA_HOST_SOURCES CONFIGURE_DEPENDS src/backends/cuda/*.cpp)
set_source_files_properties(${KF_CUDA_HOST_SOURCES} PROPERTIES INCLUDE_DIRECTORIES "${CUDAToolkit_INCLUDE_DIRS}")
# cuDNN's attention is described by NVIDIA's headers (packages of requirements/cuda.txt); cuDNN itself is opened at run time.
file(GLOB KF_SITE_PACKAGES "${CMAKE_SOURCE_DIR}/.venv/lib/python*/site-packages")
find_path(KF_CUDNN_FRONTEND_INCLUDE cudnn_frontend.h HINTS ${KF_SITE_PACKAGES} PATH_SUFFIXES include)
find_path(KF_CUDNN_INCLUDE cudnn.h HINTS ${KF_SITE_PACKAGES} PATH_SUFFIXES nvidia/cudnn/include)
set(KF_CUDNN_SOURCE ${CMAKE_SOURCE_DIR}/src/backends/cuda/attention/cudnn.cpp)
set(KF_CUDNN_ABSENT ${CMAKE_SOURCE_DIR}/src/backends/cuda/attention/cudnn_absent.cpp)
if(KF_CUDNN_FRONTEND_INCLUDE AND KF_CUDNN_INCLUDE)
  # Not the project's warnings. Its symbols stay within: another copy of these headers in the process, as PyTorch's, of another version
  # may be, is to share no statics of inline functions with this one.
  set_source_files_properties(${KF_CUDNN_SOURCE} PROPERTIES COMPILE_OPTIONS
    "-O1;-fvisibility=hidden;-fno-gnu-unique;-isystem;${KF_CUDNN_FRONTEND_INCLUDE};-isystem;${KF_CUDNN_INCLUDE};-isystem;${CUDAToolkit_INCLUDE_DIRS}")
  set_source_files_properties(${KF_CUDNN_ABSENT} PROPERTIES HEADER_FILE_ONLY ON)
else()
  message(STATUS "cuDNN's headers were not found: its attention row will refuse")
  set_source_files_properties(${KF_CUDNN_SOURCE} PROPERTIES HEADER_FILE_ONLY ON)
endif()
# Likewise cuSPARSELt, whose header is in its package.
find_path(KF_CUSPARSELT_INCLUDE cusparseLt.h HINTS ${KF_SITE_PACKAGES} PATH_SUFFIXES nvidia/cusparselt/include)
set(KF_CUSPARSELT_SOURCE ${CMAKE_SOURCE_DIR}/src/backends/cuda/linear/cusparselt.cpp)
if(KF_CUSPARSELT_INCLUDE)
  set_source_files_properties(${KF_CUSPARSELT_SOURCE} PROPERTIES INCLUDE_DIRECTORIES "${CUDAToolkit_INCLUDE_DIRS};${KF_CUSPARSELT_INCLUDE}")
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/backends/cuda/linear/cusparselt_absent.cpp PROPERTIES HEADER_FILE_ONLY ON)
else()
  message(STATUS "cuSPARSELt's header was not found: its row will refuse")
  set_source_files_properties(${KF_CUSPARSELT_SOURCE} PROPERTIES HEADER_FILE_ONLY ON)
endif()
set_source_files_properties(src/backends/backends.cpp PROPERTIES COMPILE_DEFINITIONS KF_CUDA)
# Draws are to be the CPU's.
set_source_files_properties(src/backends/cuda/sampling/sample.cu PROPERTIES COMPILE_OPTIONS --fmad=false)
