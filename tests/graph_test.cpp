// Building graphs, symbolic dimensions, text and drawing; memory planning; executables.

#include <algorithm>
#include <random>

#include "graph/memory_plan.h"
#include "graph_fixture.h"

namespace kf::testing {
namespace {

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
    return e.what();
  }
  ADD_FAILURE() << "expected an error";
  return {};
}

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// ---- Building

TEST(Graph, InfersSymbolicShapes) {
  Graph g;
  const Dim n = g.symbol("num_tokens");
  EXPECT_EQ(g.symbol("num_tokens"), n);
  cases::Maker make("symbols");
  const ValueId x = g.input("x", DType::f32, {n, 16});
  const ValueId w = g.constant("w", make.normal(DType::f32, {24, 16}));
  const ValueId y = g.call(LinearParams{}, {{"x", x}, {"weight", w}}).out();
  const ValueId heads = g.reshape(y, {n, 3, 8});
  EXPECT_EQ(g.value(y).tensor.dim(0), n);
  EXPECT_EQ(g.value(y).tensor.dim(1), 24);
  EXPECT_EQ(g.root(heads), y);

  const Graph known = g.with_symbols({{"num_tokens", 5}});
  EXPECT_TRUE(known.symbols().empty());
  EXPECT_EQ(shape_string(known.value(heads).tensor), "[5, 3, 8]");
  EXPECT_TRUE(known.value(heads).tensor.is_contiguous());
  EXPECT_TRUE(has(error_of([&] { g.with_symbols({}); }), "num_tokens"));
  EXPECT_TRUE(has(error_of([&] { g.with_symbols({{"num_tokens", -1}}); }), "-1"));
}

TEST(Graph, SymbolicScoreWidth) {
  GraphBuilder b("width");
  const Dim width = b.graph.symbol("seqlen_k_max");
  AttentionScoresParams p;
  p.seqlen_k_max = width;
  const ValueId s = b.call(p, {{"q", b.floats("q", {1, 2, 2, 8})}, {"k", b.floats("k", {1, 3, 1, 8})}});
  b.graph.output("scores", s);
  EXPECT_EQ(b.graph.value(s).tensor.dim(-1), width);
  const Results wide = run_graph(b.graph, b.data, kReferenceOnly, {{"seqlen_k_max", 4}});
  ASSERT_EQ(wide.at("scores").size(), 16u);
  EXPECT_EQ(wide.at("scores")[3], -INFINITY);
}

TEST(Graph, RefusesWhatDoesNotFit) {
  GraphBuilder b("refuses");
  const ValueId x = b.floats("x", {3, 16});
  EXPECT_TRUE(has(error_of([&] { b.floats("x", {1}); }), "two inputs named x"));
  EXPECT_TRUE(has(error_of([&] { b.graph.reshape(x, {3, 5}); }), "as many elements"));
  EXPECT_TRUE(has(error_of([&] { b.graph.call(LinearParams{}, {{"x", x}}); }), "weight"));
  EXPECT_TRUE(has(error_of([&] { b.graph.call(LinearParams{}, {{"y", x}}); }), "y"));
  EXPECT_TRUE(has(error_of([&] { b.graph.call(LinearParams{}, {{"x", x}, {"x", x}}); }), "twice"));
  EXPECT_TRUE(has(error_of([&] { b.graph.call(ActivationParams{}, {{"x", ValueId{99}}}); }), "this graph"));
  EXPECT_TRUE(has(error_of([&] { b.graph.constant("c", TensorView{}); }), "data"));
  EXPECT_TRUE(has(error_of([&] { b.graph.view(x, {3, 8}, {16}); }), "strides"));
  const ValueId half = b.graph.view(x, {3, 8}, {16, 1}, 8);
  EXPECT_EQ(b.graph.value(b.graph.reshape(half, {3, 2, 4})).tensor.stride(0), 16);
  EXPECT_TRUE(has(error_of([&] { b.graph.reshape(half, {24}); }), "contiguous"));
}

TEST(Graph, ErrorsOfPlanningNameTheNode) {
  GraphBuilder b("label");
  b.graph.output("out",
                 b.call(LinearParams{}, {{"x", b.floats("x", {3, 8})}, {"weight", b.weight("w", {4, 9})}},
                        "layers.0.q"));
  EXPECT_TRUE(has(error_of([&] { run_graph(b.graph, b.data); }), "layers.0.q"));
}

TEST(Graph, TextAndDrawing) {
  GraphBuilder b("text");
  const ValueId x = b.floats("x<1>", {3, 16});
  const ValueId y = b.call(LinearParams{}, {{"x", x}, {"weight", b.weight("w", {8, 16})}}, "layers.0.up");
  b.graph.output("out", b.activation(Activation::gelu, b.graph.reshape(y, {3, 2, 4})));
  const std::string text = b.graph.to_text();
  EXPECT_TRUE(has(text, "input x<1>: f32[3, 16]")) << text;
  EXPECT_TRUE(has(text, "= linear(x=x<1>, weight=w) : f32[3, 8]  # layers.0.up")) << text;
  EXPECT_TRUE(has(text, "kind=gelu")) << text;
  const std::string svg = before_after_svg(b.graph, apply_rules(b.graph, {"linear_activation"}));
  EXPECT_TRUE(has(svg, "before: 2 ops"));
  EXPECT_TRUE(has(svg, "after: 1 ops"));
  EXPECT_TRUE(has(svg, "x&lt;1&gt;"));
  EXPECT_TRUE(has(svg, "class=\"fused\""));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
}

// ---- Memory

TEST(MemoryPlan, LiveBlocksNeverOverlap) {
  std::mt19937 rng(7);
  const auto below = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  for (int round = 0; round < 200; ++round) {
    std::vector<BlockLife> blocks(static_cast<std::size_t>(1 + below(60)));
    for (BlockLife& b : blocks) {
      b.bytes = below(4) ? static_cast<std::size_t>(below(5000)) : 0;
      b.first = below(40);
      b.last = b.first + below(6);
    }
    const MemoryPlan plan = plan_memory(blocks);
    std::size_t all = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const BlockLife& a = blocks[i];
      all += (a.bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
      EXPECT_EQ(plan.offsets[i] % kArenaAlignment, 0u);
      EXPECT_LE(plan.offsets[i] + a.bytes, plan.arena_bytes);
      for (std::size_t j = 0; j < i; ++j) {
        const BlockLife& b = blocks[j];
        const bool both_live = a.first <= b.last && b.first <= a.last;
        const bool apart =
            plan.offsets[i] + a.bytes <= plan.offsets[j] || plan.offsets[j] + b.bytes <= plan.offsets[i];
        EXPECT_TRUE(!both_live || apart || a.bytes == 0 || b.bytes == 0);
      }
    }
    EXPECT_LE(plan.arena_bytes, all);
  }
}

TEST(MemoryPlan, SpaceIsUsedAgain) {
  const BlockLife chain[] = {{1000, 0, 1}, {1000, 1, 2}, {1000, 2, 3}, {1000, 3, 4}};
  EXPECT_EQ(plan_memory(chain).arena_bytes, 2048u);
}

// A graph whose values are all outputs shares no memory; with one output it does. Both must give the same.
TEST(MemoryPlan, RandomGraphsComputeTheSame) {
  for (int seed = 0; seed < 25; ++seed) {
    GraphBuilder b("random" + std::to_string(seed));
    std::mt19937 rng(static_cast<unsigned>(seed));
    std::vector<ValueId> values = {b.floats("x", {4, 6}), b.floats("y", {4, 6})};
    for (int i = 0; i < 30; ++i) {
      const auto any = [&] { return values[rng() % values.size()]; };
      switch (rng() % 4) {
        case 0:
          values.push_back(b.binary(BinaryKind::add, any(), any()));
          break;
        case 1:
          values.push_back(b.activation(Activation::silu, any()));
          break;
        case 2:
          values.push_back(b.binary(BinaryKind::mul, b.activation(Activation::relu, any()), any()));
          break;
        default:
          values.push_back(b.graph.reshape(b.graph.reshape(any(), {24}), {4, 6}));
      }
    }
    Graph keeps_all = b.graph;
    for (std::size_t i = 0; i + 1 < values.size(); ++i) keeps_all.output("v" + std::to_string(i), values[i]);
    keeps_all.output("last", values.back());
    b.graph.output("last", values.back());
    EXPECT_EQ(run_graph(b.graph, b.data).at("last"), run_graph(keeps_all, b.data).at("last"));
    const Executable lean(b.graph, {}, default_dispatcher(), {.selection = kReferenceOnly});
    const Executable full(keeps_all, {}, default_dispatcher(), {.selection = kReferenceOnly});
    EXPECT_LE(lean.peak_activation_bytes(), full.peak_activation_bytes());
  }
}

// ---- Executables

TEST(Executable, BindsInputsAndOutputs) {
  GraphBuilder b("bind");
  const ValueId y = b.activation(Activation::relu, b.floats("x", {2, 4}));
  b.graph.output("out", y);
  b.graph.output("row", b.graph.view(y, {4}, {1}, 4));
  Executable e(b.graph, {}, default_dispatcher(), {.selection = kReferenceOnly});
  EXPECT_TRUE(has(error_of([&] { e.run(); }), "x is not bound"));
  EXPECT_TRUE(has(error_of([&] { e.bind("z", b.data["x"]); }), "one of x, out, row"));
  EXPECT_TRUE(has(error_of([&] { e.bind("x", Tensor(DType::f32, {2, 5})); }), "expected f32[2, 4]"));
  EXPECT_TRUE(has(error_of([&] { e.bind("row", Tensor(DType::f32, {4})); }), "within another"));
  EXPECT_TRUE(has(error_of([&] { e.output("x"); }), "one of"));
  e.bind("x", b.data["x"]);
  e.run();
  const std::vector<double> in_arena = elements(e.output("out"));
  const Tensor mine(DType::f32, {2, 4});
  e.bind("out", mine);
  e.run();
  EXPECT_EQ(elements(mine), in_arena);
  EXPECT_EQ(e.output("out").data, mine.view().data);
  EXPECT_EQ(elements(e.output("row")), (std::vector<double>(in_arena.begin() + 4, in_arena.end())));
  EXPECT_EQ(e.launches(), 1);
  EXPECT_TRUE(has(e.to_text(), "relu"));
}

// Memory that an input has when the graph is made says nothing of what it will be bound to.
TEST(Executable, InputsAreNotPacked) {
  cases::Maker m("weights");
  const TensorView x = m.normal(DType::f32, {3, 64});
  const TensorView first = m.normal(DType::f32, {32, 64}), second = m.normal(DType::f32, {32, 64});
  for (const unsigned families : {unsigned{kFused}, unsigned{kVanilla}, unsigned{kReference}}) {
    Graph g;
    const ValueId y = g.call(LinearParams{}, {{"x", g.input("x", x)}, {"weight", g.input("w", first)}}).out();
    g.output("out", y);
    PackCache packs;
    Executable e(g, {}, default_dispatcher(),
                 {.selection = {.families = families, .kernel = {}}, .packs = &packs});
    EXPECT_EQ(packs.bytes(), 0u);
    e.bind("x", x);
    e.bind("w", second);
    e.run();
    const TensorView out = e.output("out");
    for (std::int64_t i = 0; i < out.numel(); ++i) {
      double sum = 0;
      for (std::int64_t k = 0; k < 64; ++k)
        sum += cases::element(x, i / 32 * 64 + k) * cases::element(second, i % 32 * 64 + k);
      ASSERT_NEAR(cases::element(out, i), sum, 1e-4) << families;
    }
  }
}

TEST(Executable, BoundMemoryIsAligned) {
  GraphBuilder b("aligned");
  b.graph.output("out", b.activation(Activation::relu, b.floats("x", {2, 4})));
  Executable e(b.graph, {}, default_dispatcher(), {.selection = kReferenceOnly});
  TensorView odd = b.data["x"];
  odd.data = odd.as<char>() + 1;
  EXPECT_TRUE(has(error_of([&] { e.bind("x", odd); }), "multiple of 4"));
}

TEST(Executable, OutputsAreBoundToMemoryOfTheirOwn) {
  GraphBuilder b("outputs");
  const ValueId x = b.floats("x", {2, 4});
  b.graph.output("first", b.activation(Activation::relu, x));
  b.graph.output("second", b.activation(Activation::silu, x));
  Executable e(b.graph, {}, default_dispatcher(), {.selection = kReferenceOnly});
  const Tensor out = Tensor::zeros(DType::f32, {2, 4});
  e.bind("x", b.data["x"]);
  e.bind("first", out);
  EXPECT_TRUE(has(error_of([&] { e.bind("second", out); }), "first"));
  EXPECT_TRUE(has(error_of([&] { e.bind("second", b.data["x"]); }), "shared with x"));
  EXPECT_TRUE(has(error_of([&] { e.bind("x", out); }), "first"));
  e.run();  // as it was bound before
}

TEST(Executable, CachesOfEveryLayerAreApart) {
  GraphBuilder b("caches");
  const ValueId slots = b.input("slots", b.make.integers(DType::i64, {1}));
  for (const std::string layer : {"0", "1"}) {
    const ValueId k = b.floats("k" + layer, {1, 1, 4}), v = b.floats("v" + layer, {1, 1, 4});
    const CallResult r =
        b.graph.call(AppendKvParams{}, {{"k", k},
                                        {"v", v},
                                        {"slot_mapping", slots},
                                        {"k_cache", b.floats("k_cache" + layer, {1, 1, 2, 4})},
                                        {"v_cache", b.floats("v_cache" + layer, {1, 1, 2, 4})}});
    b.graph.output("after" + layer, r["v_cache"]);
  }
  Executable e(b.graph, {}, default_dispatcher(), {.selection = kReferenceOnly});
  for (const auto& [name, t] : b.data) e.bind(name, t);
  e.run();
  e.bind("v_cache1", b.data["k_cache1"]);
  EXPECT_TRUE(has(error_of([&] { e.run(); }), "memory shared with k_cache"));
}

TEST(Executable, ConstantOutputsAreNotBound) {
  GraphBuilder b("constant");
  const ValueId w = b.weight("w", {2, 4});
  b.graph.output("w_out", w);
  b.graph.output("out", b.activation(Activation::relu, b.floats("x", {2, 4})));
  Executable e(b.graph, {}, default_dispatcher(), {.selection = kReferenceOnly});
  for (const auto& [name, t] : b.data)
    if (name == "x") e.bind(name, t);
  const Tensor out = Tensor::zeros(DType::f32, {2, 4});
  e.bind("out", out);
  EXPECT_TRUE(has(error_of([&] { e.bind("w_out", out); }), "constant"));
}

TEST(Graph, ValuesOfAnotherGraphAndOtherLayoutsAreRefused) {
  GraphBuilder b("values");
  const ValueId x = b.floats("x", {2, 4});
  const ValueId y = b.activation(Activation::relu, x);
  EXPECT_TRUE(has(error_of([&] { b.graph.output("o", ValueId{99}); }), "value of this graph"));
  EXPECT_TRUE(has(error_of([&] { b.graph.reshape(ValueId{99}, {8}); }), "value of this graph"));
  EXPECT_TRUE(has(error_of([&] { b.graph.view(ValueId{99}, {8}, {1}); }), "value of this graph"));
  const TensorView wrong = TensorView::contiguous(nullptr, DType::f32, {4, 2});
  EXPECT_TRUE(has(error_of([&] { b.graph.output("o", y, wrong); }), "shape"));
  EXPECT_TRUE(b.graph.outputs().empty());
}

TEST(Executable, ValidatesTablesBeforeItWrites) {
  GraphBuilder b("tables");
  const ValueId ids = b.input("ids", b.make.integers(DType::i32, {1, 7}));
  b.graph.output("out", b.call(EmbeddingParams{}, {{"ids", ids}, {"table", b.weight("table", {5, 4})}}));
  Executable e(b.graph, {}, default_dispatcher(), {.selection = kReferenceOnly});
  const Tensor out = Tensor::zeros(DType::f32, {2, 4});
  e.bind("ids", b.data["ids"]);
  e.bind("out", out);
  EXPECT_TRUE(has(error_of([&] { e.run(); }), "7"));
  EXPECT_EQ(elements(out), std::vector<double>(8, 0.0));
}

TEST(Executable, WritesCachesInPlace) {
  GraphBuilder b("cache");
  const ValueId k = b.floats("k", {1, 1, 4}), v = b.floats("v", {1, 1, 4});
  const ValueId slots = b.input("slots", b.make.integers(DType::i64, {1}));
  const ValueId k_cache = b.floats("k_cache", {1, 1, 2, 4}), v_cache = b.floats("v_cache", {1, 1, 2, 4});
  const CallResult r =
      b.graph.call(AppendKvParams{},
                   {{"k", k}, {"v", v}, {"slot_mapping", slots}, {"k_cache", k_cache}, {"v_cache", v_cache}});
  EXPECT_EQ(b.graph.root(r["k_cache"]), k_cache);
  b.graph.output("k_after", r["k_cache"]);
  Executable e(b.graph, {}, default_dispatcher(), {.selection = kReferenceOnly});
  for (const auto& [name, t] : b.data) e.bind(name, t);
  e.run();
  EXPECT_EQ(e.output("k_after").data, b.data["k_cache"].data);
  EXPECT_EQ(cases::element(b.data["k_cache"], 5), cases::element(b.data["k"], 1));
}

TEST(Executable, EmptyBatch) {
  GraphBuilder b("empty");
  const Dim n = b.graph.symbol("n");
  const ValueId x = b.graph.input("x", DType::f32, {n, 8});
  b.graph.output("out", b.linear(x, b.weight("w", {4, 8})));
  Executable e(b.graph, {{"n", 0}}, default_dispatcher(), {.selection = kReferenceOnly});
  e.run();
  EXPECT_EQ(e.output("out").numel(), 0);
}

}  // namespace
}  // namespace kf::testing
