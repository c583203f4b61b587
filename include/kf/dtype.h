// Element types. A block format (GGUF's) stores `block_elems` consecutive elements of a row in `block_bytes`
// bytes; a plain type is a block of one. int4 is two values a byte, low nibble first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kf {

enum class DType : std::uint8_t {
  f32,
  f16,
  bf16,
  fp8_e4m3,  // the form without infinities: float8_e4m3fn of PyTorch and DLPack
  fp8_e5m2,
  i8,
  u8,
  i32,
  i64,
  boolean,
  int4,
  // GGUF block formats, bit for bit as in the file
  // (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; ggml-common.h for the block structs).
  q4_0,  // 32 elements: f16 d, 16 bytes of nibbles (element i low of byte i, element i + 16 high): (q - 8) * d
  q4_1,  // 32 elements: f16 d, f16 m, 16 bytes of nibbles: q * d + m
  q5_0,  // 32 elements: f16 d, 32 high bits (element i is bit i), 16 bytes of nibbles as in q4_0: (q - 16) * d
  q8_0,  // 32 elements: f16 d, 32 int8: q * d
  q4_k,  // 256 elements: f16 d, f16 m, 8 pairs of 6-bit s and t (12 bytes), 128 bytes of nibbles: q * (d s) - (m t)
  q6_k,  // 256 elements: 128 bytes of low nibbles, 64 of high bits (two each), 16 int8 s, f16 d: (q - 32) * (d s)
};
inline constexpr int kNumDTypes = 17;

struct DTypeInfo {
  const char* name;
  int block_elems;  // elements stored together
  int block_bytes;  // bytes they take
  bool is_float;    // f32, f16, bf16, fp8: a plain floating-point type
  bool is_block;    // one of GGUF's block formats
};

const DTypeInfo& dtype_info(DType dtype);
// What the address of an element (in a block format, of a block) is a multiple of.
inline std::size_t dtype_alignment(DType dtype) {
  const DTypeInfo& info = dtype_info(dtype);
  return info.is_block ? 2 : static_cast<std::size_t>(info.block_bytes);  // blocks hold f16 scales and bytes
}
inline const char* dtype_name(DType dtype) { return dtype_info(dtype).name; }
std::optional<DType> dtype_from_name(std::string_view name);

// What a weight without scales beside it may be, for messages: "f32, f16, bf16, q4_0, ... or q6_k".
const std::string& weight_dtype_names();

// f32, f16 and bf16: what activations may be.
inline bool is_activation_dtype(DType t) { return t == DType::f32 || t == DType::f16 || t == DType::bf16; }

}  // namespace kf
