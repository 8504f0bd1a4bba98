#include "rondo/state/optimizer.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Type.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "rondo/checkpoint/boxes.hpp"
#include "rondo/state/bits.hpp"
#include "rondo/state/sharded_tensor.hpp"

namespace rondo::state {

namespace {

namespace optim = torch::optim;

using state_map = std::decay_t<decltype(std::declval<optim::Optimizer&>().state())>;

/// LibTorch 1.13 keys the state by the text that a stream makes of the parameter's address, 2.x by the address itself.
template <class Key = state_map::key_type>
Key state_key(const at::Tensor& parameter) {
  if constexpr (std::is_same_v<Key, std::string>) {
    std::ostringstream text;
    text << parameter.unsafeGetTensorImpl();
    return text.str();
  } else {
    return parameter.unsafeGetTensorImpl();
  }
}

// ---- What each kind of optimizer remembers. The names, and their order, are those of Python's optimizers. ----

enum class presence { required, optional };

/// How Python holds the count of steps.
enum class step_form { tensor, integer };

struct sgd {
  using optimizer = optim::SGD;
  using options = optim::SGDOptions;
  using param_state = optim::SGDParamState;
  static constexpr const char* name = "SGD";

  static void visit_options(auto& v, options& o) {
    v.number("lr", o.lr());
    v.number("momentum", o.momentum());
    v.number("dampening", o.dampening());
    v.number("weight_decay", o.weight_decay());
    v.flag("nesterov", o.nesterov());
  }
  static void visit_state(auto& v, param_state& s, const options&) {
    v.like_parameter("momentum_buffer", s.momentum_buffer(), presence::optional);
  }
  // LibTorch takes the presence of a state for that of its buffer; Python writes None there without momentum.
  static bool is_empty(const param_state& s) { return !s.momentum_buffer().defined(); }
};

template <class Optimizer, class Options, class ParamState>
struct adam_family {
  using optimizer = Optimizer;
  using options = Options;
  using param_state = ParamState;

  static void visit_options(auto& v, options& o) {
    v.number("lr", o.lr());
    v.pair("betas", o.betas());
    v.number("eps", o.eps());
    v.number("weight_decay", o.weight_decay());
    v.flag("amsgrad", o.amsgrad());
  }
  static void visit_state(auto& v, param_state& s, const options& o) {
    v.step("step", s.step(), step_form::tensor);
    v.like_parameter("exp_avg", s.exp_avg(), presence::required);
    v.like_parameter("exp_avg_sq", s.exp_avg_sq(), presence::required);
    v.like_parameter("max_exp_avg_sq", s.max_exp_avg_sq(), o.amsgrad() ? presence::required : presence::optional);
  }
  static bool is_empty(const param_state&) { return false; }
};

struct adam : adam_family<optim::Adam, optim::AdamOptions, optim::AdamParamState> {
  static constexpr const char* name = "Adam";
};

struct adamw : adam_family<optim::AdamW, optim::AdamWOptions, optim::AdamWParamState> {
  static constexpr const char* name = "AdamW";
};

struct rmsprop {
  using optimizer = optim::RMSprop;
  using options = optim::RMSpropOptions;
  using param_state = optim::RMSpropParamState;
  static constexpr const char* name = "RMSprop";

  static void visit_options(auto& v, options& o) {
    v.number("lr", o.lr());
    v.number("momentum", o.momentum(), presence::optional);
    v.number("alpha", o.alpha());
    v.number("eps", o.eps());
    v.flag("centered", o.centered());
    v.number("weight_decay", o.weight_decay());
  }
  static void visit_state(auto& v, param_state& s, const options& o) {
    v.step("step", s.step(), step_form::integer);
    v.like_parameter("square_avg", s.square_avg(), presence::required);
    v.like_parameter("momentum_buffer", s.momentum_buffer(),
                     o.momentum() > 0 ? presence::required : presence::optional);
    v.like_parameter("grad_avg", s.grad_avg(), o.centered() ? presence::required : presence::optional);
  }
  static bool is_empty(const param_state&) { return false; }
};

struct adagrad {
  using optimizer = optim::Adagrad;
  using options = optim::AdagradOptions;
  using param_state = optim::AdagradParamState;
  static constexpr const char* name = "Adagrad";

  static void visit_options(auto& v, options& o) {
    v.number("lr", o.lr());
    v.number("lr_decay", o.lr_decay());
    v.number("eps", o.eps());
    v.number("weight_decay", o.weight_decay());
    v.number("initial_accumulator_value", o.initial_accumulator_value());
  }
  static void visit_state(auto& v, param_state& s, const options&) {
    v.step("step", s.step(), step_form::tensor);
    v.like_parameter("sum", s.sum(), presence::required);
  }
  static bool is_empty(const param_state&) { return false; }
};

struct lbfgs {
  using optimizer = optim::LBFGS;
  using options = optim::LBFGSOptions;
  using param_state = optim::LBFGSParamState;
  static constexpr const char* name = "LBFGS";

  static void visit_options(auto& v, options& o) {
    v.number("lr", o.lr());
    v.integer("max_iter", o.max_iter());
    v.optional_integer("max_eval", o.max_eval());
    v.number("tolerance_grad", o.tolerance_grad());
    v.number("tolerance_change", o.tolerance_change());
    v.integer("history_size", o.history_size());
    v.optional_text("line_search_fn", o.line_search_fn());
  }
  static void visit_state(auto& v, param_state& s, const options& o) {
    v.integer("func_evals", s.func_evals());
    v.integer("n_iter", s.n_iter());
    // Before the first iteration Python holds the two counters only.
    if (s.n_iter() == 0) return;
    v.flat("d", s.d());
    v.number("t", s.t());
    v.flat_history("old_dirs", s.old_dirs(), o.history_size());
    v.flat_history("old_stps", s.old_stps(), o.history_size());
    v.scalar_history("ro", s.ro(), s.old_dirs().size());
    v.same_length("old_stps", s.old_stps(), s.old_dirs().size());
    v.scalar("H_diag", s.H_diag());
    v.flat("prev_flat_grad", s.prev_flat_grad());
    v.number("prev_loss", s.prev_loss());
    v.scratch("al", s.al(), o.history_size());
  }
  static bool is_empty(const param_state&) { return false; }
};

/// Calls `f.operator()<kind>(optimizer)` with what `optimizer` is. Throws `state_error` for types not known here.
template <class F>
decltype(auto) with_kind(const optim::Optimizer& optimizer, F&& f) {
  if (dynamic_cast<const optim::SGD*>(&optimizer)) return f.template operator()<sgd>();
  if (dynamic_cast<const optim::Adam*>(&optimizer)) return f.template operator()<adam>();
  if (dynamic_cast<const optim::AdamW*>(&optimizer)) return f.template operator()<adamw>();
  if (dynamic_cast<const optim::RMSprop*>(&optimizer)) return f.template operator()<rmsprop>();
  if (dynamic_cast<const optim::Adagrad*>(&optimizer)) return f.template operator()<adagrad>();
  if (dynamic_cast<const optim::LBFGS*>(&optimizer)) return f.template operator()<lbfgs>();
  throw state_error("", fmt::format("the optimizer type {} is not known here; give it state_dict() and "
                                    "load_state_dict(const rondo::state::value&), or specialize "
                                    "rondo::state::adapter for it",
                                    c10::demangle(typeid(optimizer).name())));
}

// ---- Parts of parameters ----

/// Of the tensors that belong to a parameter: what is asked for, and what it is a part of.
struct wanted_rows {
  std::vector<std::int64_t> whole;
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> sizes;

  [[nodiscard]] bool is_whole() const { return sizes == whole; }
  [[nodiscard]] bool is_empty() const { return std::ranges::find(sizes, 0) != sizes.end(); }
};

/// `part` is null where the optimizer has the whole parameter.
wanted_rows rows_of(const at::Tensor& parameter, const parameter_part* part) {
  const auto sizes = parameter.sizes().vec();
  if (part == nullptr) return {sizes, std::vector<std::int64_t>(sizes.size(), 0), sizes};
  auto whole = part->whole.sizes().vec();
  std::vector<std::int64_t> offsets(whole.size(), 0);
  if (!offsets.empty()) offsets[0] = part->first_row;
  return {std::move(whole), std::move(offsets), sizes};
}

value sharded(const at::Tensor& here, const parameter_part& part) {
  const auto rows = rows_of(here, &part);
  sharded_tensor result{rows.whole, here.scalar_type(), {}};
  if (!rows.is_empty()) result.pieces.push_back({rows.offsets, here});
  return result.to_value();
}

const parameter_part* part_at(const std::vector<parameter_part>* parts, std::int64_t index) {
  return parts == nullptr ? nullptr : &parts->at(static_cast<std::size_t>(index));
}

// ---- Saving ----

/// Writes visited fields into a dict.
class field_writer {
 public:
  explicit field_writer(dict& into, const parameter_part* part = nullptr) : into_(into), part_(part) {}

  void number(const char* key, double n, presence = presence::required) { put(key, n); }
  void integer(const char* key, std::int64_t n) { put(key, n); }
  void flag(const char* key, bool b) { put(key, b); }
  void pair(const char* key, const std::tuple<double, double>& p) { put(key, tuple{{std::get<0>(p), std::get<1>(p)}}); }
  void optional_integer(const char* key, const auto& n) { put(key, n ? value(*n) : value()); }
  void optional_text(const char* key, const auto& s) { put(key, s ? value(*s) : value()); }

  void step(const char* key, std::int64_t n, step_form form) {
    if (form == step_form::integer) return put(key, n);
    constexpr std::int64_t exact_in_float = std::int64_t{1} << 24;
    const auto dtype = n <= exact_in_float ? at::kFloat : at::kDouble;
    put(key, at::scalar_tensor(static_cast<double>(n), at::TensorOptions(dtype)));
  }
  void like_parameter(const char* key, const at::Tensor& t, presence) {
    if (part_ != nullptr && t.defined()) return put(key, sharded(t.detach(), *part_));
    put_defined(key, t);
  }
  void flat(const char* key, const at::Tensor& t) { put_defined(key, t); }
  void scalar(const char* key, const at::Tensor& t) { put_defined(key, t); }
  void flat_history(const char* key, const std::deque<at::Tensor>& tensors, std::int64_t) { put_all(key, tensors); }
  void scalar_history(const char* key, const std::deque<at::Tensor>& tensors, std::size_t) { put_all(key, tensors); }
  void same_length(const char*, const std::deque<at::Tensor>&, std::size_t) {}
  void scratch(const char* key, const auto& tensors, std::int64_t) {
    if (tensors) put_all(key, *tensors);
  }

 private:
  void put(const char* key, value v) { into_.insert_or_assign(key, std::move(v)); }
  void put_defined(const char* key, const at::Tensor& t) {
    if (t.defined()) put(key, t.detach());
  }
  void put_all(const char* key, const auto& tensors) {
    list items;
    items.reserve(tensors.size());
    for (const at::Tensor& t : tensors) items.push_back(t.defined() ? value(t.detach()) : value());
    put(key, std::move(items));
  }

  dict& into_;
  const parameter_part* part_;
};

/// `parts` is null for whole parameters.
template <class Kind>
dict save(const optim::Optimizer& optimizer, const std::vector<parameter_part>* parts) {
  dict states;
  list groups;
  std::int64_t index = 0;
  std::unordered_map<const void*, std::int64_t> indices;
  for (const auto& group : optimizer.param_groups()) {
    auto options = dynamic_cast<const typename Kind::options&>(group.options());
    dict saved;
    field_writer fields(saved);
    Kind::visit_options(fields, options);
    list numbers;
    numbers.reserve(group.params().size());
    for (const at::Tensor& parameter : group.params()) {
      numbers.emplace_back(index);
      if (const auto found = optimizer.state().find(state_key(parameter)); found != optimizer.state().end()) {
        auto state = dynamic_cast<const typename Kind::param_state&>(*found->second);
        dict saved_state;
        field_writer state_fields(saved_state, part_at(parts, index));
        if (!Kind::is_empty(state)) {
          Kind::visit_state(state_fields, state, options);
          states.insert_or_assign(index, std::move(saved_state));
        }
      }
      ++index;
    }
    saved.insert_or_assign("params", std::move(numbers));
    groups.emplace_back(std::move(saved));
  }
  return {{"state", std::move(states)}, {"param_groups", std::move(groups)}};
}

// ---- Loading ----

/// Reads visited fields from a dict and checks them. `path` leads to the dict and is put before the keys in errors.
class field_reader {
 public:
  field_reader(const dict& from, std::string path, const at::Tensor& parameter = {}, std::int64_t flat_size = 0,
               const parameter_part* part = nullptr)
      : from_(from), path_(std::move(path)), parameter_(parameter), flat_size_(flat_size), part_(part) {}

  void number(const char* key, double& n, presence p = presence::required) {
    if (const value* v = look_up(key, p)) n = as_number(key, *v);
  }
  void integer(const char* key, std::int64_t& n) { n = as_integer(key, *look_up(key, presence::required)); }
  void flag(const char* key, bool& b) {
    const value* v = look_up(key, presence::optional);
    // Python's optimizers take an absent flag for False.
    b = v != nullptr && as_flag(key, *v);
  }
  void pair(const char* key, std::tuple<double, double>& p) {
    const value& v = *look_up(key, presence::required);
    const list* items = v.get_if<list>();
    if (const tuple* t = v.get_if<tuple>()) items = &t->items;
    if (items == nullptr || items->size() != 2) fail(key, "expected a tuple of two floats, found " + v.type_name());
    p = {as_number(key, (*items)[0]), as_number(key, (*items)[1])};
  }
  void optional_integer(const char* key, auto& n) {
    const value& v = *look_up(key, presence::required);
    n.reset();
    if (!v.is_null()) n = as_integer(key, v);
  }
  void optional_text(const char* key, auto& s) {
    const value& v = *look_up(key, presence::required);
    s.reset();
    if (v.is_null()) return;
    const auto* text = v.get_if<std::string>();
    if (text == nullptr) fail(key, "expected str or None, found " + v.type_name());
    s = *text;
  }

  void step(const char* key, std::int64_t& n, step_form) {
    n = as_integer(key, *look_up(key, presence::required));
    if (n < 0) fail(key, fmt::format("the count of steps is negative ({})", n));
  }
  void like_parameter(const char* key, at::Tensor& t, presence p) {
    const value* v = look_up(key, p);
    if (v == nullptr || (v->is_null() && p == presence::optional)) return;
    const auto rows = rows_of(parameter_, part_);
    t = sharded_tensor::is(*v) ? assembled(key, *v, rows) : taken(whole(key, *v, rows.whole), rows);
  }
  void flat(const char* key, at::Tensor& t) { t = shaped(key, *look_up(key, presence::required), {flat_size_}); }
  void scalar(const char* key, at::Tensor& t) { t = as_scalar(key, *look_up(key, presence::required)); }
  void flat_history(const char* key, std::deque<at::Tensor>& tensors, std::int64_t limit) {
    const list& items = as_list(key);
    if (static_cast<std::int64_t>(items.size()) > limit)
      fail(key, fmt::format("holds {} entries, more than the history_size of {}", items.size(), limit));
    tensors.clear();
    for (const value& item : items) tensors.push_back(shaped(key, item, {flat_size_}));
  }
  void scalar_history(const char* key, std::deque<at::Tensor>& tensors, std::size_t length) {
    tensors.clear();
    for (const value& item : as_list(key)) tensors.push_back(as_scalar(key, item));
    same_length(key, tensors, length);
  }
  void same_length(const char* key, const std::deque<at::Tensor>& tensors, std::size_t length) {
    if (tensors.size() != length) fail(key, fmt::format("holds {} entries, but old_dirs {}", tensors.size(), length));
  }
  template <class OptionalTensors>
  void scratch(const char* key, OptionalTensors& tensors, std::int64_t length) {
    tensors.reset();
    const value* v = look_up(key, presence::optional);
    if (v == nullptr || v->is_null()) return;
    const list& items = as_list(key);
    if (static_cast<std::int64_t>(items.size()) != length)
      fail(key, fmt::format("holds {} entries, expected the history_size of {}", items.size(), length));
    std::vector<at::Tensor> read;
    read.reserve(items.size());
    for (const value& item : items) read.push_back(item.is_null() ? at::Tensor() : as_scalar(key, item));
    tensors = std::move(read);
  }

 private:
  [[noreturn]] void fail(const std::string& key, const std::string& problem) const {
    throw state_error(path_ + "." + key, problem);
  }

  const value* look_up(const char* key, presence p) const {
    const value* v = from_.find(key);
    if (v == nullptr && p == presence::required) {
      try {
        static_cast<void>(from_.at(key));
      } catch (const state_error& e) {
        throw e.under(path_);
      }
    }
    return v;
  }

  const list& as_list(const char* key) const {
    const value& v = *look_up(key, presence::required);
    if (const list* items = v.get_if<list>()) return *items;
    fail(key, "expected list, found " + v.type_name());
  }

  bool as_flag(const char* key, const value& v) const {
    if (const bool* b = v.get_if<bool>()) return *b;
    return as_number(key, v) != 0;
  }

  /// Python keeps numbers as int, float or tensors of one element.
  double as_number(const char* key, const value& v) const {
    if (const auto* i = v.get_if<std::int64_t>()) return static_cast<double>(*i);
    if (const auto* d = v.get_if<double>()) return *d;
    const at::Tensor* t = v.get_if<at::Tensor>();
    if (t == nullptr) fail(key, "expected a number, found " + v.type_name());
    if (!has_plain_bytes(*t) || t->numel() != 1 || t->is_complex()) fail(key, "expected a tensor of one real number");
    return t->item().toDouble();
  }

  std::int64_t as_integer(const char* key, const value& v) const {
    if (const auto* i = v.get_if<std::int64_t>()) return *i;
    const double n = as_number(key, v);
    constexpr double exact_in_double = 9007199254740992.0;
    if (!(std::abs(n) <= exact_in_double) || n != std::trunc(n)) fail(key, fmt::format("{} is not a whole number", n));
    return static_cast<std::int64_t>(n);
  }

  at::ScalarType target_type(at::ScalarType from) const {
    return parameter_.is_floating_point() ? parameter_.scalar_type() : from;
  }

  at::TensorOptions target_options(const at::Tensor& from) const {
    return from.options().dtype(target_type(from.scalar_type())).device(parameter_.device());
  }

  at::Tensor copied(const at::Tensor& t) const {
    return t.detach().to(target_options(t), /*non_blocking=*/false, /*copy=*/true);
  }

  /// A copy of the rows.
  at::Tensor taken(const at::Tensor& from, const wanted_rows& rows) const {
    if (rows.is_whole()) return copied(from);
    if (rows.is_empty()) return at::empty(rows.sizes, target_options(from));
    return copied(from.narrow(0, rows.offsets[0], rows.sizes[0]));
  }

  sharded_tensor parts_of(const char* key, const value& v) const {
    try {
      return sharded_tensor::from(v);
    } catch (const state_error& e) {
      throw e.under(path_ + "." + key);
    }
  }

  /// The rows, put together from the parts that are here.
  at::Tensor assembled(const char* key, const value& v, const wanted_rows& rows) const {
    const auto all = parts_of(key, v);
    require_shape(key, all.sizes, rows.whole);
    const auto wanted = at::TensorOptions(target_type(all.dtype)).device(parameter_.device());
    const auto result = at::empty(rows.sizes, wanted);
    if (rows.is_empty()) return result;
    std::vector<wanted_rows> common;  // in the coordinates of the result
    for (const auto& piece : all.pieces) {
      auto box = common_box(rows, piece);
      if (box.is_empty()) continue;
      if (const char* why = nullptr; !has_plain_bytes(piece.tensor, &why)) fail(key, why);
      place(result, box.offsets, box.sizes)
          .copy_(place(piece.tensor.detach(), difference(box.offsets, rows.offsets, piece.offsets), box.sizes));
      common.push_back(std::move(box));
    }
    require_coverage(key, common, rows);
    return result;
  }

  static std::vector<std::int64_t> difference(std::vector<std::int64_t> in_rows,
                                              const std::vector<std::int64_t>& rows_offsets,
                                              const std::vector<std::int64_t>& piece_offsets) {
    for (std::size_t d = 0; d < in_rows.size(); ++d) in_rows[d] += rows_offsets[d] - piece_offsets[d];
    return in_rows;
  }

  static wanted_rows common_box(const wanted_rows& rows, const tensor_piece& piece) {
    wanted_rows box;
    for (std::size_t d = 0; d < rows.whole.size(); ++d) {
      const auto begin = std::max(rows.offsets[d], piece.offsets[d]);
      const auto size = piece.tensor.size(static_cast<std::int64_t>(d));
      const auto end = std::min(rows.offsets[d] + rows.sizes[d], piece.offsets[d] + size);
      box.offsets.push_back(begin - rows.offsets[d]);
      box.sizes.push_back(std::max<std::int64_t>(end - begin, 0));
    }
    return box;
  }

  static at::Tensor place(at::Tensor t, const std::vector<std::int64_t>& offsets,
                          const std::vector<std::int64_t>& sizes) {
    for (std::size_t d = 0; d < sizes.size(); ++d) t = t.narrow(static_cast<std::int64_t>(d), offsets[d], sizes[d]);
    return t;
  }

  void require_coverage(const char* key, const std::vector<wanted_rows>& common, const wanted_rows& rows) const {
    std::vector<checkpoint::box_view> boxes;
    for (const auto& box : common) boxes.push_back({box.offsets, box.sizes});
    const auto fault = checkpoint::coverage_fault_of(rows.sizes, boxes);
    if (!fault) return;
    if (fault->what == checkpoint::coverage_fault::kind::overlap) fail(key, "parts of the sharded tensor overlap");
    fail(key, fmt::format("the parts of the sharded tensor that are here hold {} of the {} elements that are needed; "
                          "consolidate the state first",
                          fault->covered, checkpoint::volume(rows.sizes).value_or(0)));
  }

  void require_shape(const char* key, at::IntArrayRef found, at::IntArrayRef expected) const {
    if (found != expected)
      fail(key, fmt::format("expected shape [{}], found [{}]", fmt::join(expected, ", "), fmt::join(found, ", ")));
  }

  at::Tensor shaped(const char* key, const value& v, at::IntArrayRef sizes) const {
    return copied(whole(key, v, sizes));
  }

  const at::Tensor& whole(const char* key, const value& v, at::IntArrayRef sizes) const {
    const at::Tensor* t = v.get_if<at::Tensor>();
    if (t == nullptr) fail(key, "expected Tensor, found " + v.type_name());
    if (const char* why = nullptr; !has_plain_bytes(*t, &why)) fail(key, why);
    require_shape(key, t->sizes(), sizes);
    return *t;
  }

  at::Tensor as_scalar(const char* key, const value& v) const {
    if (const at::Tensor* t = v.get_if<at::Tensor>()) {
      if (!has_plain_bytes(*t) || t->numel() != 1) fail(key, "expected a tensor of one number");
      return copied(*t);
    }
    return at::scalar_tensor(as_number(key, v),
                             at::TensorOptions(parameter_.scalar_type()).device(parameter_.device()));
  }

  const dict& from_;
  std::string path_;
  at::Tensor parameter_;
  std::int64_t flat_size_;
  const parameter_part* part_;
};

// The two have the same layout.
constexpr const char* adam_layout = "Adam or AdamW";

/// The kind of Python optimizer that has such a group, by the settings that only it has.
const char* likely_kind(const dict& group) {
  if (group.contains("max_iter")) return "LBFGS";
  if (group.contains("lr_decay")) return "Adagrad";
  if (group.contains("dampening")) return "SGD";
  if (group.contains("centered")) return "RMSprop";
  if (group.contains("momentum_decay")) return "NAdam";
  if (group.contains("rho")) return "Adadelta";
  if (group.contains("etas")) return "Rprop";
  if (group.contains("lambd")) return "ASGD";
  if (group.contains("amsgrad")) return adam_layout;
  return nullptr;
}

void check_kind(const dict& group, const std::string& expected, const std::string& path) {
  const char* found = likely_kind(group);
  if (found == nullptr || found == expected) return;
  if (found == adam_layout && (expected == adam::name || expected == adamw::name)) return;
  throw state_error(path, fmt::format("this is the state of {} (or of an optimizer like it), but the optimizer is {}; "
                                      "build the optimizer that was saved, or train on without its state",
                                      found, expected));
}

void refuse_true(const dict& group, const char* key, const std::string& path, const char* reason) {
  const value* v = group.find(key);
  const bool* set = v == nullptr ? nullptr : v->get_if<bool>();
  if (set != nullptr && *set) throw state_error(path + "." + key, reason);
}

template <class Kind>
void check_settings(const dict& group, const std::string& path) {
  check_kind(group, Kind::name, path);
  refuse_true(group, "maximize", path, "LibTorch's optimizers can only minimize; negate the loss instead");
  if constexpr (std::is_same_v<Kind, adam>)
    refuse_true(group, "decoupled_weight_decay", path, "LibTorch's Adam lacks it; use AdamW");
}

template <class T>
const T& get(const dict& from, const char* key, std::string_view prefix = "") {
  const value* v = from.find(key);
  if (v == nullptr) throw state_error(std::string(prefix) + key, "is missing");
  if (const T* typed = v->get_if<T>()) return *typed;
  throw state_error(std::string(prefix) + key,
                    fmt::format("expected {}, found {}", value(T()).type_name(), v->type_name()));
}

/// The numbers under which the state knows the parameters of a group.
std::vector<std::int64_t> parameter_numbers(const dict& group, const std::string& path, std::size_t expected) {
  const list& given = get<list>(group, "params", path + ".");
  if (given.size() != expected)
    throw state_error(path + ".params", fmt::format("the state has {} parameters in this group, the optimizer has {}",
                                                    given.size(), expected));
  std::vector<std::int64_t> numbers;
  numbers.reserve(given.size());
  for (const value& v : given) {
    const auto* number = v.get_if<std::int64_t>();
    if (number == nullptr) throw state_error(path + ".params", "expected a list of int, found a " + v.type_name());
    numbers.push_back(*number);
  }
  return numbers;
}

/// A checked state, ready to be put into the optimizer by moves only.
template <class Kind>
struct loaded {
  std::vector<typename Kind::options> groups;
  state_map states;
  /// Parameters that keep the state that they have.
  std::vector<at::Tensor> untouched;
};

template <class Kind>
std::int64_t flat_size(const optim::Optimizer& optimizer) {
  std::int64_t size = 0;
  if constexpr (std::is_same_v<Kind, lbfgs>)
    for (const at::Tensor& p : optimizer.param_groups().at(0).params()) size += p.numel();
  return size;
}

/// Null where the state has nothing about the parameter.
template <class Kind>
std::unique_ptr<typename Kind::param_state> read_state(const dict& all, std::int64_t number,
                                                       const at::Tensor& parameter, const parameter_part* part,
                                                       std::int64_t all_elements,
                                                       const typename Kind::options& options) {
  const std::string path = fmt::format("state.{}", number);
  const value* saved = all.find(number);
  if (saved != nullptr && !saved->is<dict>()) throw state_error(path, "expected dict, found " + saved->type_name());
  if (saved == nullptr || saved->as<dict>().empty()) {
    // LibTorch's Adagrad makes these in its constructor and cannot step without them.
    if (std::is_same_v<Kind, adagrad>) throw state_error(path, "is missing; Adagrad has one per parameter");
    return nullptr;
  }
  auto fresh = std::make_unique<typename Kind::param_state>();
  field_reader fields(saved->as<dict>(), path, parameter, all_elements, part);
  Kind::visit_state(fields, *fresh, options);
  if (Kind::is_empty(*fresh)) return nullptr;
  return fresh;
}

template <class Kind>
bool is_displaced(const at::Tensor& parameter, [[maybe_unused]] const optim::Optimizer& optimizer, const loading& act) {
  if constexpr (!std::is_same_v<Kind, lbfgs>) return act.is_displaced(parameter);
  return std::ranges::any_of(optimizer.param_groups().at(0).params(),
                             [&](const at::Tensor& p) { return act.is_displaced(p); });
}

/// Throws `state_error` for what is wrong as a whole, and for a parameter's state unless `act` is tolerant.
template <class Kind>
loaded<Kind> check(const optim::Optimizer& optimizer, const std::vector<parameter_part>* parts, const value& state,
                   loading& act) {
  const dict& root = state.as<dict>();
  const dict& saved_states = get<dict>(root, "state");
  const list& saved_groups = get<list>(root, "param_groups");
  const auto& groups = optimizer.param_groups();
  if (saved_groups.size() != groups.size())
    throw state_error("param_groups", fmt::format("the state has {} parameter groups, the optimizer has {}",
                                                  saved_groups.size(), groups.size()));

  loaded<Kind> result;
  const std::int64_t all_elements = flat_size<Kind>(optimizer);
  std::unordered_set<std::int64_t> known;
  std::vector<state_error> refused;
  std::size_t displaced = 0;
  std::int64_t index = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const std::string path = fmt::format("param_groups.{}", g);
    if (!saved_groups[g].is<dict>()) throw state_error(path, "expected dict, found " + saved_groups[g].type_name());
    const dict& saved = saved_groups[g].as<dict>();
    check_settings<Kind>(saved, path);
    auto options = dynamic_cast<const typename Kind::options&>(groups[g].options());
    field_reader option_fields(saved, path);
    Kind::visit_options(option_fields, options);

    const auto& parameters = groups[g].params();
    const auto numbers = parameter_numbers(saved, path, parameters.size());
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      if (!known.insert(numbers[i]).second)
        throw state_error(path + ".params", fmt::format("parameter {} occurs twice", numbers[i]));
      const auto* part = part_at(parts, index++);
      const auto& whole = part != nullptr ? part->whole : parameters[i];
      if (act.tolerant() && is_displaced<Kind>(whole, optimizer, act)) {
        ++displaced;
        result.untouched.push_back(parameters[i]);
        continue;
      }
      try {
        auto fresh = read_state<Kind>(saved_states, numbers[i], parameters[i], part, all_elements, options);
        if (fresh != nullptr) result.states[state_key(parameters[i])] = std::move(fresh);
      } catch (const state_error& e) {
        if (!act.tolerant()) throw;
        refused.push_back(e);
        result.untouched.push_back(parameters[i]);
      }
    }
    result.groups.push_back(std::move(options));
  }
  for (const auto& [number, unused] : saved_states)
    if (!number.is_integer() || !known.contains(number.integer()))
      throw state_error("state." + number.str(), "no parameter group lists this parameter");
  for (const auto& e : refused) act.mismatched(e);
  if (displaced > 0)
    act.mismatched("state", fmt::format("{} of {} parameters were not loaded, or have another place in the module than "
                                        "when the state was saved; their state in the optimizer starts afresh",
                                        displaced, known.size()));
  return result;
}

template <class Kind>
std::function<void()> prepare(optim::Optimizer& optimizer, const std::vector<parameter_part>* parts, const value& state,
                              loading& act) {
  // Shared, because a std::function must be copyable and the states are not.
  auto checked = std::make_shared<loaded<Kind>>(check<Kind>(optimizer, parts, state, act));
  return [&optimizer, checked] {
    for (std::size_t g = 0; g < checked->groups.size(); ++g)
      dynamic_cast<typename Kind::options&>(optimizer.param_groups()[g].options()) = std::move(checked->groups[g]);
    for (const at::Tensor& parameter : checked->untouched)
      if (const auto present = optimizer.state().find(state_key(parameter)); present != optimizer.state().end())
        checked->states[state_key(parameter)] = std::move(present->second);
    optimizer.state() = std::move(checked->states);
  };
}

}  // namespace

std::string optimizer_type_name(const optim::Optimizer& optimizer) {
  if (const auto* own = dynamic_cast<const self_describing_optimizer*>(&optimizer)) return own->type_name();
  return c10::demangle(typeid(optimizer).name());
}

dict optimizer_state(const optim::Optimizer& optimizer) {
  if (const auto* own = dynamic_cast<const self_describing_optimizer*>(&optimizer)) return own->state_dict();
  return with_kind(optimizer, [&]<class Kind>() { return save<Kind>(optimizer, nullptr); });
}

dict optimizer_state(const optim::Optimizer& optimizer, const std::vector<parameter_part>& parts) {
  return with_kind(optimizer, [&]<class Kind>() { return save<Kind>(optimizer, &parts); });
}

std::function<void()> prepare_optimizer_load(optim::Optimizer& optimizer, const std::vector<parameter_part>& parts,
                                             const value& state, loading& act) {
  const c10::AutoGradMode no_grad(false);
  return with_kind(optimizer, [&]<class Kind>() { return prepare<Kind>(optimizer, &parts, state, act); });
}

namespace {

std::function<void()> prepare_known(optim::Optimizer& optimizer, const value& state, loading& act) {
  const c10::AutoGradMode no_grad(false);
  if (auto* own = dynamic_cast<self_describing_optimizer*>(&optimizer)) return own->prepare_load(state, act);
  return with_kind(optimizer, [&]<class Kind>() { return prepare<Kind>(optimizer, nullptr, state, act); });
}

}  // namespace

std::function<void()> prepare_optimizer_load(optim::Optimizer& optimizer, const value& state, loading& act) {
  try {
    return prepare_known(optimizer, state, act);
  } catch (const state_error& e) {
    act.mismatched(e);
    return [] {};
  }
}

void load_optimizer_state(optim::Optimizer& optimizer, const value& state) {
  loading strict(load_options{});
  prepare_known(optimizer, state, strict)();
}

}  // namespace rondo::state
