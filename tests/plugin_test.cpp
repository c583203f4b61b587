// Plug-ins from files: the example's, over the cases, and files that are none.

#include "kf/plugin.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <string>

#include "case.h"
#include "kf/kf.h"
#include "runner.h"

namespace kf {
namespace {

const std::string kFolder = KF_TEST_PLUGINS;

const Backend& toy() { return load_plugin(kFolder + "/kf_toy.so"); }

std::string error_of(const std::string& path) {
  try {
    load_plugin(path);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::unavailable);
    return e.what();
  }
  ADD_FAILURE() << path << ": expected a refusal";
  return {};
}

TEST(Plugin, IsOneOfTheBackends) {
  DispatcherSet made_before;
  const Backend& backend = toy();
  EXPECT_EQ(backend.name, "toy");
  EXPECT_EQ(&load_plugin(kFolder + "/../plugins/kf_toy.so"), &backend) << "the same file by another path";
  EXPECT_EQ(&backend_by_name("toy"), &backend);
  EXPECT_EQ(std::ranges::count(all_backends(), &backend), 1);
  // Tensors of the host go to the CPU's kernels, unless its own are asked for.
  EXPECT_EQ(made_before.on({}).backend().name, "cpu");
  const Backend* const own[] = {&backend};
  EXPECT_EQ(DispatcherSet({}, own).on({}).backend().name, "toy");
  const std::vector<PluginReport> reports = plugin_reports();
  const auto report = std::ranges::find(reports, "toy", &PluginReport::backend);
  ASSERT_NE(report, reports.end());
  EXPECT_EQ(report->version, "1.0");
  EXPECT_THROW(backend.capabilities(1), Error);
}

TEST(Plugin, CasesAgreeWithTheCpusReference) {
  Dispatcher d(toy());
  std::set<Op> ops;
  for (const Kernel& k : toy().kernels()) ops.insert(k.op);
  std::set<std::string> checked;
  std::map<Op, int> seen;
  for (const cases::Case& c : cases::all_cases()) {
    // A few of each op; kf_check takes all.
    if (c.bench || !ops.contains(c.op) || seen[c.op]++ % 7 != 0) continue;
    for (const cases::KernelCheck& k : cases::check_case(c, d)) {
      if (!k.supported) {
        EXPECT_FALSE(k.reason.empty()) << c.name << " on " << k.kernel;
        continue;
      }
      checked.insert(k.kernel);
      EXPECT_TRUE(k.result.ok) << c.name << " on " << k.kernel << ": " << k.result.detail;
    }
  }
  for (const Kernel& k : toy().kernels())
    EXPECT_TRUE(checked.contains(k.name)) << k.name << " served no case";
  EXPECT_TRUE(checked.contains("toy::linear+packed"));
  // Made of its vanilla rows, as for every backend.
  EXPECT_TRUE(checked.contains("toy::rms_norm_unfused"));
  EXPECT_TRUE(checked.contains("toy::linear_unfused"));
}

TEST(Plugin, ExplainsItsRows) {
  Dispatcher d(toy());
  cases::Maker m("explain");
  LinearParams p{.x = m.normal(DType::f32, {2, 8}),
                 .weight = m.normal(DType::f32, {4, 8}),
                 .residual = m.normal(DType::f32, {2, 4}),
                 .out = m.filled(DType::f32, {2, 4}, 0)};
  const auto reasons = [&] {
    std::map<std::string, std::string> all;
    for (const Explained& e : d.explain(p)) all[e.kernel] = e.selected ? "selected" : e.reason;
    return all;
  };
  EXPECT_EQ(reasons()["toy::linear"], "residual: this row takes calls without it");
  EXPECT_EQ(reasons()["toy::linear_fused"], "selected");
  p.weight = m.normal(DType::q8_0, {4, 32});
  p.x = m.normal(DType::f32, {2, 32});
  EXPECT_EQ(reasons()["toy::linear_fused"], "weight of q8_0: this row takes f32");
  p.prologue.activation = Activation::silu;
  EXPECT_EQ(reasons()["toy::linear_fused"], "pre_activation: this row takes calls without it");
  try {
    d.run(p);
    FAIL() << "expected a refusal";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::not_implemented);
  }
}

TEST(Plugin, ServesAManagersCalls) {
  const Backend* const backends[] = {&toy()};
  KernelFusionManager manager({}, backends);
  cases::Maker m("manager");
  const RmsNormParams p{.x = m.normal(DType::f32, {2, 8}),
                        .weight = m.filled(DType::f32, {8}, 1),
                        .residual = m.normal(DType::f32, {2, 8}),
                        .out = m.filled(DType::f32, {2, 8}, 9)};
  manager.rms_norm(p);
  EXPECT_EQ(manager.stats().count({"rms_norm", "toy::residual_rms_norm"}), 1u);
}

TEST(Plugin, AGraphIsFusedOverIt) {
  Dispatcher d(toy());
  cases::Maker m("graph");
  Graph g;
  const ValueId x = g.input("x", DType::f32, {g.symbol("n"), 64});
  const ValueId r = g.input("residual", DType::f32, {g.symbol("n"), 64});
  const ValueId sum = g.call(BinaryParams{}, {{"a", x}, {"b", r}}).out();
  const TensorView w = m.filled(DType::f32, {64}, 1);
  g.output("y", g.call(RmsNormParams{}, {{"x", sum}, {"weight", g.constant("w", w)}}).out());
  g.output("sum", sum);
  EXPECT_EQ(fuse(g, {{"n", 4}}, {.mode = FusionPolicy::Mode::all}, d).nodes().size(), 1u);
  std::vector<Applied> applied;
  fuse(g, {{"n", 4}}, {.only = {"residual_rms_norm"}}, d, nullptr, &applied);
  ASSERT_EQ(applied.size(), 1u);
  EXPECT_NE(applied[0].reason.find("ms unfused"), std::string::npos) << applied[0].reason;
}

TEST(PluginFile, ThatIsMissing) {
  const std::string said = error_of("/nowhere/libnothing.so");
  EXPECT_NE(said.find("/nowhere/libnothing.so: expected the path of a shared library, got no such file"),
            std::string::npos)
      << said;
  EXPECT_NE(said.find("KF_PLUGINS"), std::string::npos) << said;
  EXPECT_EQ(plugin_reports().back().error, said);
  EXPECT_EQ(plugin_reports().back().backend, "");
  error_of("");
  error_of(kFolder);
}

TEST(PluginFile, ThatIsNoLibrary) {
  const std::string path = testing::TempDir() + "kf_no_library.so";
  std::ofstream(path) << "text";
  const std::string said = error_of(path);
  EXPECT_NE(said.find("expected a shared library for this machine"), std::string::npos) << said;
}

TEST(PluginFile, OfAnotherAbiVersion) {
  const std::string said = error_of(kFolder + "/kf_plugin_other_abi.so");
  EXPECT_NE(said.find("expected ABI version 1, got 2; compile it against the kf/kf_c.h of this kf"),
            std::string::npos)
      << said;
}

TEST(PluginFile, WithoutAFunction) {
  const std::string said = error_of(kFolder + "/kf_plugin_no_open.so");
  EXPECT_NE(said.find("expected a function kf_plugin_open, got a library without it"), std::string::npos)
      << said;
}

TEST(PluginFile, ThatGivesNoTable) {
  const std::string said = error_of(kFolder + "/kf_plugin_no_table.so");
  EXPECT_NE(said.find("libvendor.so.7 is too old: install 7.2"), std::string::npos) << said;
}

TEST(PluginFile, OfANameThatIsTaken) {
  const std::string said = error_of(kFolder + "/kf_plugin_taken_name.so");
  EXPECT_NE(said.find("got 'cpu'; load one of the two, or give it another name"), std::string::npos) << said;
  EXPECT_EQ(&backend_by_name("cpu"), all_backends().front());
}

TEST(PluginFile, ThatThrows) {
  const std::string said = error_of(kFolder + "/kf_plugin_throws.so");
  EXPECT_NE(said.find("expected a status, got an exception"), std::string::npos) << said;
}

}  // namespace
}  // namespace kf
