#include "rondo/distributed/consolidate.hpp"

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/state/digest.hpp"
#include "rondo/state/sharded_tensor.hpp"
#include "support/catch.hpp"
#include "support/ranks.hpp"
#include "support/run_task.hpp"

namespace distributed_consolidate_test {

using namespace rondo;
using distributed::rank_group;
using state::sharded_tensor;
using testing::failures_on_ranks;
using testing::on_ranks;
using testing::run_task;

namespace {

using numbers = std::vector<std::int64_t>;

/// Catch's macros belong to one thread.
void require(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error(what);
}

state::value consolidated(const state::value& tree, const rank_group& group) {
  return run_task([&] { return distributed::consolidate(tree, group); });
}

/// What rank `rank` has when the elements are dealt out along dimension `dim`, in `parts` parts for each rank.
state::value part_of(const at::Tensor& whole, std::int64_t dim, int rank, int world_size, int parts = 1) {
  sharded_tensor result{whole.sizes().vec(), whole.scalar_type(), {}};
  const auto all = world_size * parts;
  for (int i = rank; i < all; i += world_size) {
    const auto begin = whole.size(dim) * i / all;
    const auto end = whole.size(dim) * (i + 1) / all;
    if (begin == end) continue;
    numbers offsets(result.sizes.size(), 0);
    offsets[static_cast<std::size_t>(dim)] = begin;
    result.pieces.push_back({offsets, whole.narrow(dim, begin, end - begin).clone()});
  }
  return result.to_value();
}

at::Tensor bits(at::IntArrayRef sizes, at::ScalarType dtype) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(dtype) + 1);
  const auto element = static_cast<std::int64_t>(c10::elementSize(dtype));
  std::int64_t count = 1;
  for (const auto size : sizes) count *= size;
  if (dtype == at::kBool) return at::randint(2, sizes, generator, at::kBool);
  return at::randint(256, {count * element}, generator, at::kByte).view(dtype).view(sizes);
}

/// On one tree the whole tensors stand, on the other the parts of a rank.
struct both {
  state::value whole;
  std::function<state::value(int rank, int world_size)> part;
};

both mixed_tree() {
  const auto bfloat = bits({31, 3}, at::kBFloat16);
  const auto floats = bits({5, 129}, at::kFloat);
  const auto columns = bits({40, 7}, at::kDouble);
  const auto large = bits({1031, 700}, at::kFloat);
  const auto large_columns = bits({1200, 1100}, at::kHalf);
  const auto complex = bits({9, 2}, at::kComplexFloat);
  const auto booleans = bits({77}, at::kBool);
  const auto empty = at::empty({0, 4});
  const auto number = at::tensor(2.5);
  const auto plain = at::arange(7);
  const auto tree = [=](auto&& leaf) {
    state::list items{leaf(columns, 1, 3), "text", state::tuple{{leaf(booleans, 0, 2), plain}}};
    return state::value(state::dict{{"optimizer", state::dict{{0, leaf(bfloat, 0, 1)}, {1, leaf(floats, 0, 1)}}},
                                    {"items", std::move(items)},
                                    {"large", leaf(large, 0, 1)},
                                    {"large_columns", leaf(large_columns, 1, 1)},
                                    {"complex", leaf(complex, 0, 1)},
                                    {"empty", leaf(empty, 0, 1)},
                                    {"number", number},
                                    {"nothing", nullptr}});
  };
  return {
      tree([](const at::Tensor& t, int, int) { return state::value(t); }), [tree](int rank, int world_size) {
        return tree([&](const at::Tensor& t, int dim, int parts) { return part_of(t, dim, rank, world_size, parts); });
      }};
}

state::value one_leaf(const numbers& sizes, const std::vector<std::pair<numbers, at::Tensor>>& pieces) {
  sharded_tensor result{sizes, at::kFloat, {}};
  for (const auto& [offsets, tensor] : pieces) result.pieces.push_back({offsets, tensor});
  return state::dict{{"state", state::list{result.to_value()}}};
}

/// What consolidating trees that do not fit throws: the same on all ranks.
std::string refusal(int world_size, const std::function<state::value(int rank)>& tree) {
  const auto failures = failures_on_ranks(
      world_size, [&](const rank_group& group) { static_cast<void>(consolidated(tree(group.rank()), group)); });
  std::set<std::string> messages;
  for (const auto& failure : failures) {
    REQUIRE(failure);
    try {
      std::rethrow_exception(failure);
    } catch (const state_error& e) {
      messages.insert(e.what());
    }
  }
  REQUIRE(messages.size() == 1);
  return *messages.begin();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("all ranks get the whole tensors, bit for bit", "[distributed][consolidate]") {
  const auto trees = mixed_tree();
  const auto expected = state::digest_of(trees.whole);
  for (const int world_size : {1, 2, 3, 4}) {
    CAPTURE(world_size);
    on_ranks(world_size, [&](const rank_group& group) {
      const auto mine = trees.part(group.rank(), world_size);
      const auto before = state::digest_of(mine);
      const auto result = consolidated(mine, group);
      require(state::equal(result, trees.whole), "the tree is another");
      require(state::digest_of(result) == expected, "the digest is another");
      require(state::digest_of(mine) == before, "the parts were changed");
    });
  }
}

TEST_CASE("what is consolidated does not alias the parts", "[distributed][consolidate]") {
  const rank_group alone;
  const auto tensor = at::ones({4, 2});
  const auto result = consolidated(state::dict{{"moment", part_of(tensor, 0, 0, 1)}}, alone);
  const auto tree = state::dict{{"moment", part_of(tensor, 0, 0, 1)}};
  const auto again = consolidated(tree, alone);
  sharded_tensor::from(tree.at("moment")).pieces[0].tensor.zero_();
  CHECK(at::equal(again.get<at::Tensor>("moment"), at::ones({4, 2})));
  CHECK(at::equal(result.get<at::Tensor>("moment"), at::ones({4, 2})));
}

TEST_CASE("a rank may have no part, and one rank all of them", "[distributed][consolidate]") {
  const auto tensor = bits({6, 5}, at::kFloat);
  on_ranks(3, [&](const rank_group& group) {
    const auto tree = group.rank() == 1 ? one_leaf({6, 5}, {{{0, 0}, tensor}}) : one_leaf({6, 5}, {});
    const auto result = consolidated(tree, group);
    require(state::equal(result, state::dict{{"state", state::list{tensor}}}), "is another");
  });
}

TEST_CASE("parts that do not fit are the same error on all ranks", "[distributed][consolidate]") {
  const auto rows = [](std::int64_t n) { return at::ones({n, 2}); };

  SECTION("a gap") {
    const auto what = refusal(2, [&](int rank) { return one_leaf({5, 2}, {{{rank * 3, 0}, rows(2)}}); });
    CHECK(contains(what, "state.0"));
    CHECK(contains(what, "8 of its 10 elements"));
  }
  SECTION("an overlap") {
    const auto what = refusal(3, [&](int rank) {
      return one_leaf({5, 2}, {{{rank == 2 ? 3 : rank * 2, 0}, rows(2)}});
    });
    CHECK(contains(what, "state.0"));
    CHECK(contains(what, "rank 1 and rank 2 overlap"));
  }
  SECTION("another shape") {
    const auto what = refusal(2, [&](int rank) { return one_leaf({4 + rank, 2}, {{{rank * 2, 0}, rows(2)}}); });
    CHECK(contains(what, "Float [4, 2] on rank 0, and Float [5, 2] on rank 1"));
  }
  SECTION("a sharded tensor that one rank does not have") {
    const auto what = refusal(2, [&](int rank) {
      return rank == 1 ? state::value(state::dict()) : one_leaf({2, 2}, {{{0, 0}, rows(2)}});
    });
    CHECK(contains(what, "missing on rank 1"));
  }
  SECTION("another path") {
    const auto what = refusal(2, [&](int rank) {
      return state::value(state::dict{{rank == 0 ? "a" : "b", part_of(rows(4), 0, rank, 2)}});
    });
    CHECK(contains(what, "rank 1 has 'b'"));
  }
  SECTION("a part that leads outside of its tensor is told by the rank that has it") {
    const auto what = refusal(2, [&](int rank) { return one_leaf({4, 2}, {{{rank * 3, 0}, rows(2)}}); });
    CHECK(contains(what, "state.0"));
    CHECK(contains(what, "on rank 1"));
  }
  SECTION("parts without bytes") {
    const auto what = refusal(2, [&](int rank) {
      return one_leaf({4, 2}, {{{rank * 2, 0}, rank == 0 ? rows(2) : at::empty({2, 2}, at::kMeta)}});
    });
    CHECK(contains(what, "on rank 1"));
  }
}

TEST_CASE("a state without sharded tensors stays as it is", "[distributed][consolidate]") {
  on_ranks(2, [](const rank_group& group) {
    const state::value tree = state::dict{{"rank", group.rank()}, {"tensor", at::arange(3)}};
    require(state::equal(consolidated(tree, group), tree), "is another");
  });
}

}  // namespace distributed_consolidate_test
