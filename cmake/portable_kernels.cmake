# What of src/backends/cuda asks for nothing of NVIDIA's alone: compiled by nvcc, by hipcc, and for the lockstep machine of the tests.
set(KF_PORTABLE_KERNELS attention/merge attention/unfused elementwise/pointwise elementwise/quantized elementwise/softmax
                        norm/norm norm/quantized rope/append_quantized rope/rope sampling/argmax sampling/embedding sampling/sample)
# The C++ beside them.
set(KF_PORTABLE_SOURCES attention/args attention/unfused guarded portable rope/append_quantized runtime supports)
