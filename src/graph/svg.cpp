// A graph as a drawing: nodes in rows by depth, ordered so that edges stay short; weights are left to the
// tooltips.

#include <algorithm>
#include <iterator>
#include <map>

#include <fmt/format.h>

#include "graph/reflect.h"
#include "kf/rules.h"

namespace kf {
namespace {

constexpr int kBoxWidth = 170, kBoxHeight = 38, kGapX = 24, kGapY = 30, kMargin = 24, kTitleHeight = 34;

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string shortened(const std::string& text) {
  constexpr std::size_t kMaxChars = 26;
  return text.size() <= kMaxChars ? text : text.substr(0, kMaxChars - 1) + "…";
}

bool is_primitive_form(const Node& n) { return !unfused_composition(n.params).has_value(); }

struct Box {
  std::string title, detail, tooltip;
  const char* style;
  std::vector<int> sources;  // boxes that feed it
  int row = 0;
  double column = 0;
};

// The boxes of a graph and where they stand.
class Layout {
 public:
  explicit Layout(const Graph& g) : g_(g) {
    for (const auto& [name, v] : g.inputs())
      add_source(v, {name, "input", to_string(g.value(v).tensor), "io", {}});
    for (const Node& n : g.nodes()) add_node(n);
    for (const auto& [name, v] : g.outputs()) {
      Box box{name, "output", to_string(g.value(v).tensor), "io", {}};
      connect(box, v);
      boxes_.push_back(std::move(box));
    }
    drop_unused_inputs();
    assign_rows();
    order_rows();
  }

  const std::vector<Box>& boxes() const { return boxes_; }
  int width() const { return kMargin * 2 + columns_ * (kBoxWidth + kGapX) - kGapX; }
  int height() const { return kMargin * 2 + rows_ * (kBoxHeight + kGapY) - kGapY; }

 private:
  void add_source(ValueId v, Box box) {
    made_by_[v.index] = static_cast<int>(boxes_.size());
    boxes_.push_back(std::move(box));
  }

  void add_node(const Node& n) {
    Box box{op_name(n.op()),
            n.label,
            describe(n.op(), n.params.data()),
            is_primitive_form(n) ? "op" : "fused",
            {}};
    for (auto [slot, v] : n.inputs) connect(box, v);
    const int index = static_cast<int>(boxes_.size());
    boxes_.push_back(std::move(box));
    for (auto [slot, v] : n.outputs) made_by_[v.index] = index;
  }

  void connect(Box& box, ValueId v) {
    while (g_.value(v).kind == ValueKind::view) v = g_.value(v).base;
    const auto it = made_by_.find(v.index);
    if (it != made_by_.end() &&
        std::find(box.sources.begin(), box.sources.end(), it->second) == box.sources.end())
      box.sources.push_back(it->second);
  }

  void drop_unused_inputs() {
    std::vector<char> used(boxes_.size(), 0);
    for (const Box& b : boxes_)
      for (int s : b.sources) used[s] = 1;
    std::vector<int> index(boxes_.size(), -1);
    std::vector<Box> kept;
    for (std::size_t i = 0; i < boxes_.size(); ++i) {
      if (boxes_[i].sources.empty() && !used[i]) continue;
      index[i] = static_cast<int>(kept.size());
      kept.push_back(std::move(boxes_[i]));
    }
    for (Box& b : kept)
      for (int& s : b.sources) s = index[s];
    boxes_ = std::move(kept);
  }

  void assign_rows() {
    for (Box& b : boxes_)  // sources come before what they feed
      for (int s : b.sources) b.row = std::max(b.row, boxes_[s].row + 1);
    // An input stands right above its first reader, not at the top of a deep graph.
    for (std::size_t i = 0; i < boxes_.size(); ++i) {
      if (!boxes_[i].sources.empty()) continue;
      int first = -1;
      for (const Box& b : boxes_)
        if (std::find(b.sources.begin(), b.sources.end(), static_cast<int>(i)) != b.sources.end())
          first = first < 0 ? b.row : std::min(first, b.row);
      boxes_[i].row = std::max(0, first - 1);
    }
    for (const Box& b : boxes_) rows_ = std::max(rows_, b.row + 1);
  }

  // Each box goes under the middle of what feeds it; rows are then spread without overlap.
  void order_rows() {
    std::vector<std::vector<int>> rows(static_cast<std::size_t>(rows_));
    for (std::size_t i = 0; i < boxes_.size(); ++i) rows[boxes_[i].row].push_back(static_cast<int>(i));
    for (const auto& row : rows) columns_ = std::max(columns_, static_cast<int>(row.size()));
    for (auto& row : rows) {
      const auto middle = [&](int i) {
        const auto& sources = boxes_[i].sources;
        if (sources.empty()) return static_cast<double>(columns_);  // inputs to the right
        double sum = 0;
        for (int s : sources) sum += boxes_[s].column;
        return sum / static_cast<double>(sources.size());
      };
      std::stable_sort(row.begin(), row.end(), [&](int a, int b) { return middle(a) < middle(b); });
      const double start = (columns_ - static_cast<double>(row.size())) / 2;
      for (std::size_t k = 0; k < row.size(); ++k) boxes_[row[k]].column = start + static_cast<double>(k);
    }
  }

  const Graph& g_;
  std::vector<Box> boxes_;
  std::map<int, int> made_by_;  // value -> box
  int rows_ = 0, columns_ = 1;
};

class Drawing {
 public:
  void add(const Layout& layout, const std::string& title, int left) {
    if (!title.empty())
      put(R"(<text class="title" x="{}" y="{}">{}</text>)", left + kMargin, kMargin, escaped(title));
    const int top = title.empty() ? 0 : kTitleHeight;
    const auto x = [&](const Box& b) { return left + kMargin + b.column * (kBoxWidth + kGapX); };
    const auto y = [&](const Box& b) { return top + kMargin + b.row * (kBoxHeight + kGapY); };
    for (const Box& b : layout.boxes()) {
      for (int s : b.sources) {
        const Box& from = layout.boxes()[s];
        const double x0 = x(from) + kBoxWidth / 2.0, x1 = x(b) + kBoxWidth / 2.0;
        const int y0 = y(from) + kBoxHeight, y1 = y(b);
        put(R"(<path d="M{:.0f} {} C{:.0f} {} {:.0f} {} {:.0f} {}"/>)", x0, y0, x0, y0 + kGapY, x1,
            y1 - kGapY, x1, y1);
      }
    }
    for (const Box& b : layout.boxes()) {
      put(R"(<g class="{}"><title>{}</title><rect x="{:.0f}" y="{}" width="{}" height="{}" rx="6"/>)",
          b.style, escaped(b.tooltip), x(b), y(b), kBoxWidth, kBoxHeight);
      put(R"(<text x="{:.0f}" y="{}">{}</text><text class="detail" x="{:.0f}" y="{}">{}</text></g>)",
          x(b) + kBoxWidth / 2.0, y(b) + 16, escaped(shortened(b.title)), x(b) + kBoxWidth / 2.0, y(b) + 30,
          escaped(shortened(b.detail)));
    }
    width_ = std::max(width_, left + layout.width());
    height_ = std::max(height_, top + layout.height());
  }

  std::string finish() const {
    return fmt::format(
               R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}"><style>)"
               "text{{font:12px "
               "sans-serif;text-anchor:middle;fill:#1c2733}}.detail{{font-size:10px;fill:#5b6b7a}}"
               ".title{{font-size:15px;text-anchor:start}}path{{fill:none;stroke:#9aa7b3}}rect{{stroke:#"
               "8896a3}}"
               ".io rect{{fill:#f3f5f7}}.op rect{{fill:#ffffff}}.fused rect{{fill:#ffe2b8;stroke:#d08a1d}}"
               "</style>\n",
               width_, height_) +
           body_ + "</svg>\n";
  }

  int width() const { return width_; }

 private:
  template <class... Args>
  void put(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(body_), format, std::forward<Args>(args)...);
    body_ += '\n';
  }

  std::string body_;
  int width_ = 0, height_ = 0;
};

std::string counted(const char* name, const Graph& g) {
  return fmt::format("{}: {} ops", name, g.nodes().size());
}

}  // namespace

std::string Graph::to_svg() const {
  Drawing d;
  d.add(Layout(*this), "", 0);
  return d.finish();
}

std::string before_after_svg(const Graph& before, const Graph& after) {
  Drawing d;
  d.add(Layout(before), counted("before", before), 0);
  d.add(Layout(after), counted("after", after), d.width());
  return d.finish();
}

}  // namespace kf
