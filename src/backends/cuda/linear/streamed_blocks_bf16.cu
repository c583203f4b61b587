#include "backends/cuda/linear/coded_rows.cuh"

KF_DEFINE_CODED(blocks, bf16, Bf16)
