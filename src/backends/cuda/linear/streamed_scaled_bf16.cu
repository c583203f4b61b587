#include "backends/cuda/linear/coded_rows.cuh"

KF_DEFINE_CODED(scaled, bf16, Bf16)
