#include "backends/cuda/linear/coded_rows.cuh"

KF_DEFINE_CODED(scaled, f16, F16)
