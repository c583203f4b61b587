# What of src/backends/cuda asks for nothing of NVIDIA's alone: compiled by nvcc, by hipcc, and for the lockstep machine of the tests.
set(KF_PORTABLE_KERNELS attention/f32 attention/merge attention/unfused elementwise/pointwise elementwise/quantized elementwise/softmax
                        linear/dequant_gemv_blocks linear/dequant_gemv_k_blocks linear/dequant_gemv_plain linear/dequant_gemv_scaled linear/dequant_gemv_sparse
                        linear/gemv_bf16 linear/gemv_f16 linear/gemv_f32
                        norm/norm norm/quantized rope/append_quantized rope/rope sampling/argmax sampling/embedding sampling/sample)
# The C++ beside them.
set(KF_PORTABLE_SOURCES attention/args attention/f32 attention/plan attention/unfused guarded linear/prologue_epilogue linear/dequant_gemv
                        linear/products linear/gemv portable rope/append_quantized runtime supports)
