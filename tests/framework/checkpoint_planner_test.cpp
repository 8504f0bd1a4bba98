#include "rondo/checkpoint/planner.hpp"

#include <torch/cuda.h>
#include <torch/types.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rondo/checkpoint/verify.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/state/random.hpp"
#include "support/catch.hpp"
#include "support/training.hpp"

namespace checkpoint_planner_test {

namespace {

using namespace rondo;
using checkpoint::planner;
using checkpoint::snapshot_info;
using bytes = std::vector<std::byte>;

bytes written(const checkpoint::encoder& file) {
  bytes out;
  file.write([&](std::span<const std::byte> piece) { out.insert(out.end(), piece.begin(), piece.end()); });
  return out;
}

/// As if nothing had been planned before.
bytes fresh_file(const state::value& v, const snapshot_info& info) {
  const auto described = checkpoint::describe(v);
  return written(checkpoint::encoder(described.tree, described.views(), info));
}

/// By way of memory that has been used before.
bytes imaged(const planner& plan) {
  const auto& file = plan.file();
  bytes image(file.size(), std::byte{0xa5});
  file.write_frame(image);
  const auto& storages = plan.storages();
  for (std::size_t i = 0; i < storages.size(); ++i)
    if (!storages[i].data.empty())
      std::memcpy(image.data() + file.storage_offset(i), storages[i].data.data(), storages[i].data.size());
  bytes out;
  checkpoint::seal(image, file.checksum_spots(),
                   [&](std::span<const std::byte> piece) { out.insert(out.end(), piece.begin(), piece.end()); });
  return out;
}

/// Plans `v` and checks everything about the plan. Returns whether it was built upon the one before.
bool planned_well(planner& plan, const state::value& v, const snapshot_info& info = {}) {
  plan.plan(v, info);
  const auto expected = fresh_file(v, info);
  REQUIRE((written(plan.file()) == expected));
  REQUIRE((imaged(plan) == expected));
  const auto described = checkpoint::describe(v);
  REQUIRE(plan.storages().size() == described.storages.size());
  for (std::size_t i = 0; i < described.storages.size(); ++i) {
    const auto& mine = plan.storages()[i];
    const auto& theirs = described.storages[i];
    REQUIRE(mine.key == theirs.key);
    REQUIRE(mine.name == theirs.name);
    REQUIRE(mine.size == theirs.size);
    REQUIRE(mine.data.size() == theirs.data.size());
    REQUIRE(mine.tensor.storage().nbytes() >= mine.size);
  }
  return plan.reused();
}

state::value model_state(double lr, std::int64_t step, const at::Tensor& weight) {
  return state::dict{{"model", state::dict{{"weight", weight.detach()}, {"view", weight.slice(0, 1, 2)}}},
                     {"lr", lr},
                     {"step", step},
                     {"name", "adam"},
                     {7, state::list{nullptr, true, state::tuple{{1, torch::ones(3)}}}}};
}

}  // namespace

TEST_CASE("a plan is the same as a description from scratch", "[checkpoint][planner]") {
  planner plan;
  const auto weight = torch::rand({4, 5});
  CHECK_FALSE(planned_well(plan, model_state(0.1, 1, weight), {1, 0}));
  CHECK(problems(checkpoint::reader::from_bytes(imaged(plan), "image")).empty());
  CHECK(planned_well(plan, model_state(0.1, 1, weight), {1, 0}));
}

TEST_CASE("scalars and the info may change, even in length", "[checkpoint][planner]") {
  planner plan;
  const auto weight = torch::rand({4, 5});
  planned_well(plan, model_state(0.1, 1, weight), {9, 0});
  for (const std::int64_t step : {2, 255, 256, 65'535, 65'536, -1, 3'000'000}) {
    CAPTURE(step);
    CHECK(planned_well(plan, model_state(1.0 / static_cast<double>(step), step, weight), {step, step / 10}));
  }
  CHECK(
      planned_well(plan, model_state(0.1, std::int64_t{1} << 40, weight), {1, 1, true, {{"new", "library"}}, 8, "me"}));
  CHECK(planned_well(plan, model_state(0.1, 1, weight)));

  const auto mixed = [](state::value a, state::value b) {
    return state::dict{{"a", std::move(a)}, {"b", std::move(b)}};
  };
  CHECK_FALSE(planned_well(plan, mixed(nullptr, 1)));
  CHECK(planned_well(plan, mixed(true, 2.5)));
  CHECK(planned_well(plan, mixed(-7, at::Tensor())));
  CHECK(planned_well(plan, mixed(0.0, -0.0)));
  CHECK_FALSE(planned_well(plan, mixed(state::bytes{{std::byte{1}}}, 0)));
  CHECK(planned_well(plan, mixed(state::bytes{bytes(5000, std::byte{200})}, 0)));
  CHECK(planned_well(plan, mixed(state::bytes{}, 0)));
}

TEST_CASE("tensors may be others of the same kind", "[checkpoint][planner]") {
  planner plan;
  planned_well(plan, model_state(0.1, 1, torch::rand({4, 5})));
  for (int i = 0; i < 20; ++i) {
    const auto weight = torch::rand({4, 5});
    CHECK(planned_well(plan, model_state(0.1, 1, weight)));
    if (i % 2 == 0) plan.release();
    CHECK(planned_well(plan, model_state(0.1, 1, weight)));
  }
}

TEST_CASE("what changes the file is planned anew", "[checkpoint][planner]") {
  planner plan;
  const auto a = torch::arange(12, torch::kFloat).view({3, 4});
  const auto b = torch::arange(12, torch::kFloat).view({3, 4}).clone();
  const auto pair = [](const at::Tensor& x, const at::Tensor& y) { return state::dict{{"x", x}, {"y", y}}; };
  const auto differs = [&](const state::value& v) {
    planned_well(plan, pair(a, b));
    CHECK(planned_well(plan, pair(a, b)));
    CHECK_FALSE(planned_well(plan, v));
    CHECK(planned_well(plan, v));
  };
  SECTION("geometry") {
    differs(pair(a.t(), b));
    differs(pair(a.view({12}), b));
    differs(pair(a.slice(0, 1), b));
    differs(pair(torch::zeros({3, 4}, torch::kInt), b));
    differs(pair(torch::zeros({3, 5}), b));
    differs(pair(torch::zeros({4, 4}).slice(0, 0, 3), b));
  }
  SECTION("sharing") {
    differs(pair(a, a));
    planned_well(plan, pair(a, a));
    CHECK_FALSE(planned_well(plan, pair(a, b)));
    // The second takes the place that was the first one's.
    planned_well(plan, pair(a, b));
    CHECK(planned_well(plan, pair(b, a)));
    CHECK_FALSE(planned_well(plan, pair(b, b)));
  }
  SECTION("keys, texts and shape") {
    differs(state::dict{{"x", a}, {"z", b}});
    differs(state::dict{{"y", b}, {"x", a}});
    differs(state::dict{{"x", a}, {1, b}});
    differs(state::dict{{"x", a}, {"y", b}, {"z", 1}});
    differs(state::dict{{"x", a}});
    differs(state::dict{{"x", a}, {"y", state::list{b}}});
    differs(state::list{a, b});
    differs(state::dict{{"x", a}, {"y", "text"}});
    planned_well(plan, state::dict{{"x", "text"}, {"y", "other"}});
    CHECK_FALSE(planned_well(plan, state::dict{{"x", "text"}, {"y", "text"}}));
    planned_well(plan, state::list{a, state::list{}});
    CHECK_FALSE(planned_well(plan, state::list{a, state::tuple{}}));
    CHECK_FALSE(planned_well(plan, state::list{a, state::dict{}}));
    CHECK_FALSE(planned_well(plan, state::list{a, at::Tensor()}));
    CHECK_FALSE(planned_well(plan, state::value(1)));
  }
}

TEST_CASE("pending conjugations are carried out at every plan", "[checkpoint][planner]") {
  planner plan;
  auto t = torch::complex(torch::ones(2), torch::ones(2));
  const state::value v =
      state::dict{{"plain", t}, {"a", t.conj()}, {"b", t.conj()}, {"imaginary", torch::imag(t.conj())}};
  planned_well(plan, v);
  t.mul_(3);
  CHECK(planned_well(plan, v));
  const auto file = checkpoint::reader::from_bytes(imaged(plan), "image");
  CHECK(torch::equal(checkpoint::load_tensor(file, "a"), torch::conj(t).resolve_conj()));
  const auto a = torch::complex(torch::zeros(2), torch::ones(2));
  CHECK_FALSE(planned_well(plan, state::dict{{"plain", t}, {"a", t}, {"b", t.conj()}, {"imaginary", torch::ones(2)}}));
}

TEST_CASE("storages of other devices are laid out and not copied", "[checkpoint][planner]") {
  // The CPU's memory under another name would do, but LibTorch has none; a GPU is not always there.
  if (!torch::cuda::is_available()) return;
  planner plan;
  const auto there = torch::arange(1000, torch::kCUDA);
  const state::value v = state::dict{{"there", there}, {"here", torch::ones(3)}};
  plan.plan(v, {});
  REQUIRE(plan.storages().size() == 2);
  CHECK(plan.storages()[0].data.empty());
  CHECK(plan.storages()[0].size == 8000);
  CHECK(plan.storages()[0].tensor.is_same(there));
  CHECK(plan.file().size() == fresh_file(v, {}).size());
  CHECK_THROWS_AS(written(plan.file()), std::logic_error);
}

TEST_CASE("a refused state leaves no plan and does no harm", "[checkpoint][planner]") {
  planner plan;
  CHECK_THROWS_AS(plan.file(), std::logic_error);
  CHECK_THROWS_AS(plan.storages(), std::logic_error);
  const auto good = state::dict{{"a", state::dict{{"w", torch::ones(2)}}}};
  planned_well(plan, good);
  try {
    plan.plan(state::dict{{"a", state::dict{{"w", torch::eye(2).to_sparse()}}}}, {});
    FAIL("a sparse tensor was accepted");
  } catch (const state_error& e) {
    CHECK(e.key() == "a.w");
  }
  CHECK_FALSE(plan.reused());
  CHECK_THROWS_AS(plan.file(), std::logic_error);
  CHECK_FALSE(planned_well(plan, good));
  CHECK_THROWS_AS(plan.plan(state::dict{{"a", state::dict{{"\xff", torch::ones(2)}}}}, {}), state_error);
  CHECK_FALSE(planned_well(plan, good));
  CHECK_THROWS_AS(plan.plan(good, {1, 1, false, {}, 1, "\xff"}), state_error);
  CHECK_FALSE(planned_well(plan, good));
}

TEST_CASE("a plan lets go of tensors", "[checkpoint][planner]") {
  planner plan;
  auto weight = torch::ones({100});
  plan.plan(state::dict{{"w", weight}}, {});
  CHECK(weight.use_count() == 2);
  const auto expected = fresh_file(state::dict{{"w", weight}}, {});
  plan.release();
  CHECK(weight.use_count() == 1);
  CHECK(plan.storages().empty());
  CHECK(plan.file().size() == expected.size());
  CHECK_THROWS_AS(written(plan.file()), std::logic_error);
  CHECK(planned_well(plan, state::dict{{"w", weight}}));
}

TEST_CASE("a planner can be moved", "[checkpoint][planner]") {
  planner first;
  const state::value v = state::dict{{"w", torch::ones(2)}};
  first.plan(v, {});
  planner second = std::move(first);
  CHECK(planned_well(second, v));
}

TEST_CASE("snapshots of a training are planned upon the one before", "[checkpoint][planner]") {
  for (const auto& kind : testing::optimizer_cases()) {
    CAPTURE(kind.name);
    planner plan;
    testing::training run(kind);
    const auto state = [&] {
      return state::dict{{"model", state::module_state(*run.model)},
                         {"optimizer", state::optimizer_state(*run.optimizer)},
                         {"random", state::random_state()}};
    };
    planned_well(plan, state());
    run.steps(7);  // until LBFGS has its whole history
    planned_well(plan, state());
    for (int i = 0; i < 3; ++i) {
      run.steps(1);
      plan.release();
      CHECK(planned_well(plan, state()));
    }
  }
}

// ---- random trees with random histories

namespace {

class random_tree {
 public:
  explicit random_tree(unsigned seed) : random_(seed) {
    for (int i = 0; i < 6; ++i) pool_.push_back(tensor());
  }

  state::value make(int depth = 0) {
    switch (below(depth < 4 ? 12 : 8)) {
      case 0:
      case 1:
      case 2:
        return tensor_or_known();
      case 3:
        return text();
      case 4:
        return raw();
      case 5:
      case 6:
      case 7:
        return scalar();
      case 8: {
        state::list items;
        for (auto n = below(4); n > 0; --n) items.push_back(make(depth + 1));
        return items;
      }
      case 9: {
        state::tuple items;
        for (auto n = below(4); n > 0; --n) items.items.push_back(make(depth + 1));
        return items;
      }
      default: {
        state::dict items;
        for (auto n = below(6); n > 0; --n) items.insert_or_assign(key(), make(depth + 1));
        return items;
      }
    }
  }

  /// Mostly a change that a plan survives, so that histories are long.
  void mutate(state::value& root) {
    std::vector<state::value*> nodes;
    collect(root, nodes);
    auto& node = *nodes[below(nodes.size())];
    switch (below(10)) {
      case 0:
        node = make(2);
        return;
      case 1:
        if (auto* items = node.get_if<state::dict>()) items->insert_or_assign(key(), make(3));
        if (auto* items = node.get_if<state::list>()) items->push_back(make(3));
        return;
      case 2:
        if (node.is<at::Tensor>()) node = tensor_or_known();
        return;
      case 3:
        if (node.is<std::string>()) node = text();
        return;
      case 4:
        pool_[below(pool_.size())] = tensor();
        return;
      case 5:  // the same tensors in other memory, sharing as before
        renew_storages(nodes);
        return;
      default:
        for (auto* each : nodes) {
          if (below(3) != 0) continue;
          if (each->is<state::bytes>()) *each = raw();
          if (each->is<std::int64_t>() || each->is<double>() || each->is<bool>() || each->is_null()) *each = scalar();
        }
    }
  }

  std::size_t below(std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random_); }

 private:
  static void collect(state::value& node, std::vector<state::value*>& out) {
    out.push_back(&node);
    if (auto* items = node.get_if<state::list>())
      for (auto& item : *items) collect(item, out);
    if (auto* items = node.get_if<state::tuple>())
      for (auto& item : items->items) collect(item, out);
    if (auto* items = node.get_if<state::dict>())
      for (auto& item : *items) collect(item.second, out);
  }

  void renew_storages(const std::vector<state::value*>& nodes) {
    std::vector<std::pair<c10::StorageImpl*, at::Tensor>> renewed;
    for (auto* node : nodes) {
      auto* t = node->get_if<at::Tensor>();
      if (t == nullptr || !t->defined() || t->is_conj()) continue;
      auto* const old = t->storage().unsafeGetStorageImpl();
      auto known = std::find_if(renewed.begin(), renewed.end(), [&](const auto& r) { return r.first == old; });
      if (known == renewed.end()) {
        const auto size = static_cast<std::int64_t>(t->storage().nbytes());
        const auto whole = torch::empty({0}, torch::kByte).set_(t->storage(), 0, {size}, {1});
        renewed.emplace_back(old, whole.clone());
        known = renewed.end() - 1;
      }
      *t = torch::empty({0}, t->options()).set_(known->second.storage(), t->storage_offset(), t->sizes(), t->strides());
    }
  }

  at::Tensor tensor() {
    static constexpr at::ScalarType types[] = {at::kFloat, at::kInt, at::kByte, at::kDouble, at::kBool};
    const auto options = at::TensorOptions(types[below(5)]);
    const auto rows = static_cast<std::int64_t>(below(4));
    const auto columns = static_cast<std::int64_t>(below(40));
    const auto t = torch::randint(0, 2, {rows, columns}, options);
    switch (below(8)) {
      case 0:
        return t.t();
      case 1:
        return t.slice(1, columns / 2);
      case 2:
        return torch::zeros({}, options);
      case 3:
        return torch::complex(torch::rand(3), torch::rand(3)).conj();
      default:
        return t;
    }
  }
  at::Tensor tensor_or_known() {
    if (below(12) == 0) return {};
    return below(3) == 0 ? tensor() : pool_[below(pool_.size())].detach();
  }
  std::string text() { return std::string(texts_[below(texts_.size())]); }
  state::key key() {
    if (below(4) == 0) return below(4);
    return text();
  }
  state::value scalar() {
    switch (below(6)) {
      case 0:
        return nullptr;
      case 1:
        return below(2) == 0;
      case 2:
        return static_cast<double>(below(100)) / 7;
      default:
        return static_cast<std::int64_t>(random_()) >> below(40);
    }
  }
  state::bytes raw() {
    state::bytes result{bytes(below(20))};
    for (auto& byte : result.data) byte = static_cast<std::byte>(below(256));
    return result;
  }

  // Also such as look like paths, storage keys or what the encoder itself writes.
  const std::vector<std::string_view> texts_ = {"weight",  "a",   "a.b",    "b", "0",      "1",
                                                "storage", "cpu", "latin1", "",  "ü\"\\\n"};
  std::mt19937 random_;
  std::vector<at::Tensor> pool_;
};

}  // namespace

TEST_CASE("a plan after any history is the same as a fresh one", "[checkpoint][planner]") {
  int reused = 0;
  int anew = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    random_tree source(seed);
    planner plan;
    auto tree = source.make();
    for (int i = 0; i < 25; ++i) {
      const snapshot_info info{static_cast<std::int64_t>(source.below(100'000)), 1, source.below(2) == 0};
      ++(planned_well(plan, tree, info) ? reused : anew);
      if (source.below(4) == 0) plan.release();
      if (source.below(20) == 0) tree = source.make();
      source.mutate(tree);
    }
  }
  // Both ways must have been taken often.
  CHECK(reused > 300);
  CHECK(anew > 300);
}

}  // namespace checkpoint_planner_test
