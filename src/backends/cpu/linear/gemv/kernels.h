// The linear family for few tokens, for the table in kernels.cpp.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "backends/cpu/linear/kernels.h"
#include "kf/kernel.h"
#include "kf/ops/linear.h"

namespace kf::cpu::gemv {

// What calls the kernels take, in words.
std::string condition();

// On the processor's matrix units (matrix.h).
std::string matrix_condition();
Support supports_matrix_primitive(const LinearParams& p, const PlanContext& ctx);
Support supports_matrix(const LinearParams& p, const PlanContext& ctx);
Support supports_matrix(const QkvLinearParams& p, const PlanContext& ctx);
Support supports_matrix(const GatedFfnParams& p, const PlanContext& ctx);
Support supports_matrix(const LmHeadArgmaxParams& p, const PlanContext& ctx);

// The rows of calls that ask for x in 8 bits: any number of tokens.
std::string int8_condition();
Support supports_int8_primitive(const LinearParams& p, const PlanContext& ctx);
Support supports_int8(const LinearParams& p, const PlanContext& ctx);
Support supports_int8(const QkvLinearParams& p, const PlanContext& ctx);
Support supports_int8(const GatedFfnParams& p, const PlanContext& ctx);
Support supports_int8(const LmHeadArgmaxParams& p, const PlanContext& ctx);

// The primitive form: no prologue, activation or residual.
Support supports_primitive(const LinearParams& p, const PlanContext& ctx);
Support supports(const LinearParams& p, const PlanContext& ctx);
Support supports(const QkvLinearParams& p, const PlanContext& ctx);
Support supports(const GatedFfnParams& p, const PlanContext& ctx);
Support supports(const LmHeadArgmaxParams& p, const PlanContext& ctx);

template <Units kUnits>
std::size_t workspace(const LinearParams& p, const PlanContext& ctx);
template <Units kUnits>
std::size_t workspace(const QkvLinearParams& p, const PlanContext& ctx);
template <Units kUnits>
std::size_t workspace(const GatedFfnParams& p, const PlanContext& ctx);
template <Units kUnits>
std::size_t workspace(const LmHeadArgmaxParams& p, const PlanContext& ctx);

template <Units kUnits>
void run(const LinearParams& p, const RunContext& ctx);
template <Units kUnits>
void run(const QkvLinearParams& p, const RunContext& ctx);
template <Units kUnits>
void run(const GatedFfnParams& p, const RunContext& ctx);
template <Units kUnits>
void run(const LmHeadArgmaxParams& p, const RunContext& ctx);

// Kernel::reads_first.
std::vector<MemoryRange> first_reads(const LinearParams& p, int thread, int threads);
std::vector<MemoryRange> first_reads(const QkvLinearParams& p, int thread, int threads);
std::vector<MemoryRange> first_reads(const GatedFfnParams& p, int thread, int threads);
std::vector<MemoryRange> first_reads(const LmHeadArgmaxParams& p, int thread, int threads);

}  // namespace kf::cpu::gemv
