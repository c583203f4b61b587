// Which sources, compiler and flags the library was built from: what was measured with one build says nothing of
// another. Twelve hexadecimal digits; cmake/build_id.cmake.
#pragma once

namespace kf {

const char* build_id();

}  // namespace kf
