// A graph planned for fixed symbol values: every kernel chosen, every intermediate placed by liveness in one
// arena.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "kf/dispatch.h"
#include "kf/graph.h"

namespace kf {

class Executable {
 public:
  struct Options {
    Selection selection;
    PackCache* packs = nullptr;  // non-null: constants are packed there; must outlive the executable
    bool telemetry = true;       // off: the dispatcher's sink is not told of the steps
  };
  Executable(const Graph& graph, const SymbolValues& symbols, Dispatcher& dispatcher, const Options& options);
  ~Executable();
  Executable(Executable&&) noexcept;

  // Binds an input's or output's memory; the layout must be the planned one. Outputs not bound stay in the
  // arena.
  void bind(std::string_view name, const TensorView& tensor);
  // Where an output lies (after run, until the next).
  TensorView output(std::string_view name) const;
  // Validates host tables once, then runs every step; on a device it returns once they are enqueued.
  void run(const Launch& launch = {});
  // Whether the launches of a run can be recorded: the backend does so, and every kernel allows it.
  Support recordable() const;
  // Records them: from now on run() replays the recording, until another operand is bound. A dispatcher's sink is told of
  // every kernel, so while it has one, run() still runs step by step (unless Options::telemetry is off). Run once before:
  // kernels may prepare at their first launch what cannot be recorded. Throws not_implemented where it is not recordable.
  void record();
  bool recorded() const;
  std::size_t peak_activation_bytes() const;  // the arena: intermediates and workspaces
  int launches() const;                       // kernels a run: those recorded, else as plans have it
  std::string to_text() const;                // each step: op, kernel, shapes

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kf
