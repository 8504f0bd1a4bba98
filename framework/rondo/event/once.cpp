#include "rondo/event/once.hpp"

namespace rondo {

namespace {

class once_trigger {
 public:
  explicit once_trigger(bool on_resume) : on_resume_(on_resume) {}

  bool due(const moment&) { return !std::exchange(fired_, true); }
  std::string str() const { return on_resume_ ? "once per run" : "once"; }
  bool same_on_all_ranks() const { return true; }
  state::value state_dict() const { return state::dict{{"fired", fired_}}; }
  void load_state_dict(const state::value& state) { fired_ = !on_resume_ && state.get<bool>("fired"); }

 private:
  bool on_resume_;
  bool fired_ = false;
};

}  // namespace

trigger once(bool on_resume) { return once_trigger(on_resume); }

}  // namespace rondo
