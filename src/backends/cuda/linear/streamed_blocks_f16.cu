#include "backends/cuda/linear/coded_rows.cuh"

KF_DEFINE_CODED(blocks, f16, F16)
