// Text generation: prompts of different lengths together over one engine's cache, long ones in chunks between
// the others' tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kf/engine.h"

namespace kf {

// How a token is drawn: SampleParams says what each does. Temperature 0 is greedy.
struct SamplingOptions {
  float temperature = 0.0f;
  std::int64_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  std::int64_t seed = 0;
};

struct GenerateRequest {
  std::vector<std::int32_t> prompt;  // at least one token
  std::int64_t max_new_tokens = 0;
  SamplingOptions sampling;
  std::vector<std::int32_t> stop_ids;  // a token of these ends the text; it is part of the result
};

enum class FinishReason : std::uint8_t { length, stop, cancelled };

struct GenerateResult {
  std::vector<std::int32_t> tokens;
  FinishReason reason = FinishReason::length;
  double seconds_to_first_token = 0;
  double seconds = 0;  // to the last token
};

// Told of every token as soon as it is known; false ends that request. It may make and release sequences of
// the engine's cache, but neither step nor generate; to release a sequence that is being generated is an
// error.
using TokenCallback = std::function<bool(std::size_t request, std::int32_t token)>;

// Results in the order of the requests. A request's tokens depend on itself alone, not on what runs beside it
// (up to the rounding of kernels that work on other batch sizes). Requests wait until the cache has room for
// all that they may become; one that can never fit is an error before anything starts.
std::vector<GenerateResult> generate(Engine& engine, std::span<const GenerateRequest> requests,
                                     const TokenCallback& on_token = {});

}  // namespace kf
