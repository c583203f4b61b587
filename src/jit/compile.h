// CUDA source to code for an architecture, by way of the cache on disk.
#pragma once

#include <optional>
#include <string>

#include "jit/nvrtc.h"
#include "kf/cuda_source.h"

namespace kf::jit {

// Everything that the result depends on, as text.
std::string compile_key(const CudaSource& source, const std::vector<std::string>& options,
                        const Nvrtc& nvrtc);

// What NVRTC is given: the architecture and KF_TYPE, the toolkit's headers, then the source's own options. `as_ptx`: the
// architecture is not known to this NVRTC; the newest that is, as PTX, which the driver compiles.
std::vector<std::string> compile_options(const CudaSource& source, const std::string& architecture,
                                         DType dtype, const Nvrtc& nvrtc);

// The name of a device's own code, with the instructions that only it has (wgmma): "sm_90" is "sm_90a".
std::string own_architecture(const std::string& isa);

// `folder` empty: nothing is kept.
CompiledCuda compile(const std::string& name, const CudaSource& source, const std::string& architecture,
                     DType dtype, const Nvrtc& nvrtc, const std::string& folder);

// Where it is kept by default; empty: nowhere.
std::string cuda_cache_folder();

// One file a key. A file that is not whole, or of another key, is as good as none.
std::optional<CompiledCuda> read_cached(const std::string& folder, const std::string& key);
// Leaves no file where that fails, which is said in the log: the code is compiled again the next time.
void write_cached(const std::string& folder, const std::string& key, const CompiledCuda& compiled);

// Types of an entry's parameters as PTX declares them. Throws invalid_argument for one passed by value that is no number.
std::vector<std::string> ptx_parameters(const std::string& ptx, const std::string& symbol);

}  // namespace kf::jit
