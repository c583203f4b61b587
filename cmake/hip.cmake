# The ROCm backend: the kernels of src/backends/cuda that ask for nothing of NVIDIA's alone, compiled by hipcc. Each architecture
# is one that the compiler knows: Debian's 5.2.3 has gfx906 and gfx90a, Hygon's own (DTK) also gfx926, gfx928 and gfx936.
if(KF_CUDA)
  message(FATAL_ERROR "KF_HIP and KF_CUDA compile the same sources, once for each machine: build with one of them")
endif()
find_program(KF_HIPCC hipcc HINTS /opt/rocm/bin /opt/dtk/bin)
if(NOT KF_HIPCC)
  message(FATAL_ERROR "KF_HIP: expected hipcc; Debian's package hipcc has it, or set KF_HIPCC")
endif()
set(KF_HIP_FLAGS -x hip -std=c++20 -O3 -fPIC -Wall -Wno-unused-function
    -I${CMAKE_SOURCE_DIR}/src/backends/hip/machine -I${CMAKE_SOURCE_DIR}/src -I${CMAKE_SOURCE_DIR}/include)
foreach(architecture IN LISTS KF_HIP_ARCHITECTURES)
  list(APPEND KF_HIP_FLAGS --offload-arch=${architecture})
endforeach()
set(KF_HIP_OBJECTS)
foreach(kernel IN LISTS KF_PORTABLE_KERNELS)
  set(source ${CMAKE_SOURCE_DIR}/src/backends/cuda/${kernel}.cu)
  set(object ${CMAKE_BINARY_DIR}/hip/${kernel}.o)
  set(flags ${KF_HIP_FLAGS})
  if(kernel STREQUAL sampling/sample)
    list(APPEND flags -ffp-contract=off)  # draws are to be the CPU's
  endif()
  get_filename_component(folder ${object} DIRECTORY)
  file(MAKE_DIRECTORY ${folder})
  add_custom_command(OUTPUT ${object}
    COMMAND ${CMAKE_COMMAND} -E env HIP_PLATFORM=amd ${KF_HIPCC} ${flags} -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS ${source} DEPFILE ${object}.d COMMENT "Compiling ${kernel}.cu as HIP" VERBATIM)
  list(APPEND KF_HIP_OBJECTS ${object})
endforeach()
add_custom_target(kf_hip_kernels DEPENDS ${KF_HIP_OBJECTS})

# The C++ around them, with HIP's headers; HIP itself is opened at run time.
find_path(KF_HIP_INCLUDE hip/hip_runtime_api.h HINTS /opt/rocm/include /opt/dtk/include REQUIRED)
list(TRANSFORM KF_PORTABLE_SOURCES REPLACE "(.+)" "${CMAKE_SOURCE_DIR}/src/backends/cuda/\\1.cpp" OUTPUT_VARIABLE KF_HIP_SOURCES)
file(GLOB KF_HIP_OWN_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/backends/hip/*.cpp)
list(APPEND KF_HIP_SOURCES ${KF_HIP_OWN_SOURCES})
set(folders ${CMAKE_SOURCE_DIR}/src/backends/hip/machine ${KF_HIP_INCLUDE})
list(REMOVE_ITEM folders /usr/include)  # where compilers look last, as they must
list(JOIN KF_HIP_ARCHITECTURES ", " architectures)  # a semicolon would end the definition
set_source_files_properties(${KF_HIP_SOURCES} PROPERTIES
  INCLUDE_DIRECTORIES "${folders}"
  COMPILE_DEFINITIONS "__HIP_PLATFORM_AMD__;KF_HIP_ARCHITECTURES=\"${architectures}\"")
set_source_files_properties(src/backends/backends.cpp PROPERTIES COMPILE_DEFINITIONS KF_HIP)
set_source_files_properties(${KF_HIP_OBJECTS} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
target_sources(kf PRIVATE ${KF_HIP_SOURCES} ${KF_HIP_OBJECTS})
