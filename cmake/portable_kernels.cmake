# What of src/backends/cuda asks for nothing of NVIDIA's alone: compiled by nvcc, by hipcc, and for the lockstep machine of the tests.
set(KF_PORTABLE_KERNELS attention/f32 attention/merge attention/unfused elementwise/pointwise elementwise/quantized elementwise/softmax
                        linear/decoded_blocks linear/decoded_k_blocks linear/decoded_plain linear/decoded_scaled linear/decoded_sparse
                        linear/small_bf16 linear/small_f16 linear/small_f32
                        norm/norm norm/quantized rope/append_quantized rope/rope sampling/argmax sampling/embedding sampling/sample)
# The C++ beside them.
set(KF_PORTABLE_SOURCES attention/args attention/f32 attention/plan attention/unfused guarded linear/around linear/decoded
                        linear/products linear/small portable rope/append_quantized runtime supports)
