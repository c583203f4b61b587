// The linear family for many tokens, for the table in kernels.cpp.
#pragma once

#include <cstddef>
#include <memory>

#include "kf/kernel.h"
#include "kf/ops/linear.h"

namespace kf::cpu {

// What multiplies: vectors in f32, or the processor's matrix units.
enum class Units { vector, matrix };

// gemm.cpp: our own GEMM
struct GemmState;
namespace gemm {

// The primitive form, as an eager framework calls it for weights that its library does not take.
Support supports_primitive(const LinearParams& p, const PlanContext& ctx);

// On the processor's matrix units.
Support supports_matrix(const LinearParams& p, const PlanContext& ctx);
Support supports_matrix(const QkvLinearParams& p, const PlanContext& ctx);
Support supports_matrix(const GatedFfnParams& p, const PlanContext& ctx);
Support supports_matrix(const LmHeadArgmaxParams& p, const PlanContext& ctx);
Support supports_matrix_primitive(const LinearParams& p, const PlanContext& ctx);

std::shared_ptr<GemmState> prepare(const LinearParams& p, const PlanContext& ctx, std::size_t* bytes,
                                   Units units);
std::shared_ptr<GemmState> prepare(const QkvLinearParams& p, const PlanContext& ctx, std::size_t* bytes,
                                   Units units);
std::shared_ptr<GemmState> prepare(const GatedFfnParams& p, const PlanContext& ctx, std::size_t* bytes,
                                   Units units);
std::shared_ptr<GemmState> prepare(const LmHeadArgmaxParams& p, const PlanContext& ctx, std::size_t* bytes,
                                   Units units);
// As the table takes them.
template <class P>
std::shared_ptr<GemmState> prepare_vector(const P& p, const PlanContext& ctx, std::size_t* bytes) {
  return prepare(p, ctx, bytes, Units::vector);
}
template <class P>
std::shared_ptr<GemmState> prepare_matrix(const P& p, const PlanContext& ctx, std::size_t* bytes) {
  return prepare(p, ctx, bytes, Units::matrix);
}
void run(const LinearParams& p, const GemmState& s, const RunContext& ctx);
void run(const QkvLinearParams& p, const GemmState& s, const RunContext& ctx);
void run(const GatedFfnParams& p, const GemmState& s, const RunContext& ctx);
void run(const LmHeadArgmaxParams& p, const GemmState& s, const RunContext& ctx);

}  // namespace gemm

// onednn.cpp: the library's
struct MatmulState;
namespace onednn {

Support supports(const LinearParams& p, const PlanContext& ctx);
std::shared_ptr<MatmulState> prepare(const LinearParams& p, const PlanContext& ctx, std::size_t* bytes);
void run(const LinearParams& p, const MatmulState& s, const RunContext& ctx);

}  // namespace onednn

}  // namespace kf::cpu
