#include "rondo/data/distributed.hpp"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "rondo/data/batch.hpp"
#include "rondo/data/pass.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/data/tensor_dataset.hpp"
#include "rondo/error.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"

namespace data_distributed_test {

using namespace rondo;
using namespace rondo::testing;

namespace {

template <class Range>
std::vector<int> read(Range&& range) {
  std::vector<int> elements;
  for (auto&& e : range) elements.push_back(e);
  return elements;
}

std::vector<int> counting(int n) {
  std::vector<int> elements(static_cast<std::size_t>(n));
  std::iota(elements.begin(), elements.end(), 0);
  return elements;
}

}  // namespace

TEST_CASE("each rank gets the share that Python's DistributedSampler gives it", "[data][distributed]") {
  const auto judged = run_python(R"(
import json
from torch.utils.data.distributed import DistributedSampler
cases = [(n, world, drop, rank) for n in [1, 2, 3, 7, 8, 20] for world in [1, 2, 3, 5, 8] for drop in [False, True]
         for rank in range(world) if not (drop and n < world)]
print(json.dumps([[n, world, drop, rank, list(DistributedSampler(range(n), world, rank, shuffle=False, drop_last=drop))]
                  for n, world, drop, rank in cases]))
)");
  REQUIRE(judged.status == 0);
  const auto cases = nlohmann::json::parse(judged.output);
  REQUIRE(cases.size() > 150);
  for (const auto& each : cases) {
    CAPTURE(each.dump());
    const auto numbers = counting(each[0]);
    const auto world = each[1].get<std::int64_t>();
    const auto share = numbers | data::distributed(each[3], world, {.drop_last = each[2]});
    REQUIRE(read(share) == each[4].get<std::vector<int>>());
    REQUIRE(share.size() == static_cast<std::int64_t>(each[4].size()));
  }
}

TEST_CASE("the shares of a shuffled range are disjoint and cover it, anew in each epoch", "[data][distributed]") {
  const auto numbers = counting(30);
  std::vector<int> together;
  std::vector<int> before;
  for (std::int64_t rank = 0; rank < 3; ++rank) {
    auto share = numbers | data::shuffle(4) | data::distributed(rank, 3);
    static_assert(ranges::random_access_range<const decltype(share)>);
    static_assert(ranges::view_<decltype(share)>);
    for (const int n : read(share)) before.push_back(n);
    data::set_epoch(share, 1);
    REQUIRE(share.size() == 10);
    for (const int n : read(share)) together.push_back(n);
  }
  REQUIRE(together != before);
  for (auto* all : {&together, &before}) {
    std::sort(all->begin(), all->end());
    REQUIRE(*all == numbers);
  }
}

TEST_CASE("a range with too few elements gives all ranks the same number", "[data][distributed]") {
  const auto numbers = counting(2);
  for (std::int64_t rank = 0; rank < 5; ++rank) {
    REQUIRE(read(numbers | data::distributed(rank, 5)) == std::vector<int>{static_cast<int>(rank % 2)});
    REQUIRE(read(numbers | data::distributed(rank, 5, {.drop_last = true})).empty());
    REQUIRE(read(counting(0) | data::distributed(rank, 5)).empty());
  }
}

TEST_CASE("a share makes its batches at once", "[data][distributed]") {
  const data::tensor_dataset set(at::arange(10, at::kFloat), at::arange(10, at::kLong));
  auto batches = set | data::distributed(1, 4) | data::batch(3);
  REQUIRE((*batches.begin()).target.equal(at::tensor({1, 5, 9}, at::kLong)));
}

TEST_CASE("ranks that do not exist are refused", "[data][distributed]") {
  REQUIRE(contains(message_of<option_error>([] { static_cast<void>(data::distributed(0, 0)); }), "'world_size' = 0"));
  REQUIRE(contains(message_of<option_error>([] { static_cast<void>(data::distributed(3, 3)); }), "from 0 to 2"));
  REQUIRE(contains(message_of<option_error>([] { static_cast<void>(data::distributed(-1, 3)); }), "'rank' = -1"));
}

TEST_CASE("the state of one rank is for all ranks", "[data][distributed]") {
  const auto numbers = counting(24);
  const auto pipeline = [&](std::int64_t rank, std::int64_t world, std::uint64_t seed) {
    return numbers | data::shuffle(seed) | data::distributed(rank, world) | data::batch(2);
  };
  auto saved = pipeline(0, 3, 7);
  REQUIRE(state::equal(data::state_dict(saved), data::state_dict(pipeline(2, 3, 7))));
  auto loaded = pipeline(2, 3, 1);
  const captured_stderr messages;
  data::load_state_dict(loaded, data::state_dict(saved));
  REQUIRE(contains(messages.text(), "seed"));
  REQUIRE_FALSE(contains(messages.text(), "world_size"));
  auto expected = pipeline(2, 3, 7);
  for (std::int64_t i = 0; i < 4; ++i) REQUIRE(*(loaded.begin() + i) == *(expected.begin() + i));
  SECTION("another number of processes is noticed") {
    auto other = pipeline(1, 2, 7);
    data::load_state_dict(other, data::state_dict(saved));
    REQUIRE(contains(messages.text(), "world_size is 2 here and 3"));
    REQUIRE(*other.begin() == *pipeline(1, 2, 7).begin());
  }
}

}  // namespace data_distributed_test
