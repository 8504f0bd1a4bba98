#include "rondo/event/trigger.hpp"

#include <fmt/format.h>

namespace rondo {

namespace {

class combined {
 public:
  combined(trigger a, trigger b, bool both) : a_(std::move(a)), b_(std::move(b)), both_(both) {}

  bool due(const moment& now) {
    const bool a = a_.due(now);
    const bool b = b_.due(now);
    return both_ ? a && b : a || b;
  }
  std::string str() const { return fmt::format("({} {} {})", a_.str(), both_ ? "and" : "or", b_.str()); }
  bool same_on_all_ranks() const { return a_.same_on_all_ranks() && b_.same_on_all_ranks(); }
  bool judges_values() const { return a_.judges_values() || b_.judges_values(); }
  /// A side that does not know leaves it to the other one.
  std::optional<bool> holds(const moment& now) const {
    const auto a = a_.holds(now);
    const auto b = b_.holds(now);
    if (!a || !b) return a ? a : b;
    return both_ ? *a && *b : *a || *b;
  }
  state::value state_dict() const { return state::dict{{"a", a_.state_dict()}, {"b", b_.state_dict()}}; }
  void load_state_dict(const state::value& state) {
    a_.load_state_dict(state.at("a"));
    b_.load_state_dict(state.at("b"));
  }

 private:
  trigger a_;
  trigger b_;
  bool both_;
};

class negated {
 public:
  explicit negated(trigger a) : a_(std::move(a)) {}

  bool due(const moment& now) { return !a_.due(now); }
  std::string str() const { return "not " + a_.str(); }
  bool same_on_all_ranks() const { return a_.same_on_all_ranks(); }
  bool judges_values() const { return a_.judges_values(); }
  std::optional<bool> holds(const moment& now) const {
    const auto other = a_.holds(now);
    return other ? std::optional(!*other) : std::nullopt;
  }
  state::value state_dict() const { return a_.state_dict(); }
  void load_state_dict(const state::value& state) { a_.load_state_dict(state); }

 private:
  trigger a_;
};

struct never_fires {
  bool due(const moment&) { return false; }
  std::string str() const { return "never"; }
  bool same_on_all_ranks() const { return true; }
  bool holds(const moment&) const { return false; }
};

}  // namespace

trigger operator||(trigger a, trigger b) { return combined(std::move(a), std::move(b), false); }
trigger operator&&(trigger a, trigger b) { return combined(std::move(a), std::move(b), true); }
trigger operator!(trigger a) { return negated(std::move(a)); }
trigger never() { return never_fires(); }

}  // namespace rondo
