// Runs cases: every kernel that accepts a case is compared with the reference; two kernels are timed against each
// other, interleaved, with the results checked in the same run. Tests, kf_bench and the command line all call this.
// Operands are made on the host; a dispatcher over another device gets copies of them.
#pragma once

#include <string>
#include <vector>

#include "case.h"
#include "kf/dispatch.h"

namespace kf::cases {

// A case's operands: inputs made, outputs allocated.
struct Instance {
  AnyParams params;
  std::vector<Tensor> storage;
};
Instance instantiate(const Case& c);

struct Comparison {
  bool ok = true;
  double max_error = 0;       // largest |got - ref|
  double relative_error = 0;  // that over the largest finite |ref|
  std::string detail;         // the first element out of tolerance
};

struct KernelCheck {
  std::string kernel;
  std::string families;
  bool supported = false;
  std::string reason;  // why not supported
  Comparison result;   // worst output, where supported
};

// Each kernel of the case's op against the reference row of `reference`, the CPU's: as the case has it, with the rows of
// the outputs apart, and with each output in the memory of each input that it may alias. A kernel that writes outside its
// outputs, or between their rows, is caught by guard bytes; one that changes another input is, too.
std::vector<KernelCheck> check_case(const Case& c, Dispatcher& dispatcher,
                                    Dispatcher& reference = default_dispatcher());

struct Timing {
  std::string baseline, optimized;                 // kernel names
  double baseline_ms = 0, optimized_ms = 0;        // medians
  int iterations = 0;                              // timed runs of each
  double baseline_bytes = 0, optimized_bytes = 0;  // workspace
  Cost cost;
  Comparison check;  // optimized against baseline
};

// The kernel that `optimized` selects against the one that `baseline` selects, alternating, for about `seconds`.
Timing time_case(const Case& c, Dispatcher& dispatcher, const Selection& baseline, const Selection& optimized,
                 double seconds);

// A call of benchmark size on a device, over copies of its operands that take turns, so that the device's caches do not hold
// them, and checked against the kernel that `reference` (the CPU) selects by default.
struct DeviceTiming {
  std::string kernel;
  double ms = 0;       // Backend::time
  double copy_ms = 0;  // copying as many bytes as the call moves (half of them read, half written)
  Cost cost;
  Comparison check;
};
DeviceTiming time_on_device(const Case& c, Dispatcher& dispatcher, const Selection& selection,
                            Dispatcher& reference = default_dispatcher());

// Copy bandwidth in GB/s (read + write), over buffers larger than the last-level cache: of the dispatcher's threads, or
// of its device.
double copy_bandwidth(Dispatcher& dispatcher);
// GB/s at which the dispatcher's threads read these tensors of the host, each a share of all bytes, as one stream or as four,
// whichever is faster: what bounds a kernel that streams them. Memory differs by where its pages lie, so a model's own
// weights tell what bounds that model.
double read_bandwidth(Dispatcher& dispatcher, std::span<const TensorView> tensors);
// f32 multiply-adds in GFLOP/s, of the dispatcher's threads, operands in registers: what bounds a kernel that multiplies
// matrices. The best of several trials.
double multiply_add_peak(Dispatcher& dispatcher);

}  // namespace kf::cases
