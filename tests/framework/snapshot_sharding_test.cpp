#include "rondo/extensions/snapshot/sharding.hpp"

#include <torch/torch.h>

#include <algorithm>
#include <map>
#include <optional>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/sharded.hpp"
#include "support/temporary_directory.hpp"

namespace snapshot_sharding_test {

using namespace rondo;
using namespace rondo::testing;
using extensions::share;
using state::sharded_tensor;

namespace {

using integers = std::vector<std::int64_t>;

at::Tensor numbers(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  std::int64_t count = 1;
  for (const auto size : sizes) count *= size;
  return at::arange(count, at::kLong).remainder(251).to(dtype).view(sizes);
}

/// Replicated tensors of all sorts and some that are spread by rows, as rank `rank` of `world_size` has them.
state::value odd_state(int rank, int world_size) {
  static const auto weight = at::randn({1031, 7});
  static const auto tied = at::randn({50, 40});
  static const auto wide = at::randn({1, 3001});
  static const auto moment = at::randn({1031, 7});
  static const auto deep = at::randn({13, 5, 3, 3}, at::kDouble);
  static const auto vector = at::randn({17});
  static const auto transposed = at::randn({60, 41}).t();
  static const auto half = at::randn({999, 9}).to(at::kHalf);
  state::list list{weight, 3, state::tuple{{half, vector}}};
  return state::dict{{"models", state::dict{{"encoder", tied}, {"decoder", tied}, {"wide", wide}}},
                     {"list", std::move(list)},
                     {"transposed", transposed},
                     {"nothing", at::Tensor()},
                     {"steps", state::dict{{0, numbers({}, at::kLong)}, {1, 2.5}}},
                     {"moments", state::dict{{0, rows_of(moment, rank, world_size)},
                                             {1, rows_of(deep, rank, world_size)},
                                             {2, rows_of(vector, rank, world_size)},
                                             {3, rows_of(at::empty({0, 4}), rank, world_size)}}}};
}

std::vector<state::value> states_of(int world_size) {
  std::vector<state::value> all;
  for (int rank = 0; rank < world_size; ++rank) all.push_back(odd_state(rank, world_size));
  return all;
}

std::uint64_t bytes_in(const state::value& v) {
  if (const auto* tensor = v.get_if<at::Tensor>()) return tensor->defined() ? tensor->nbytes() : 0;
  std::uint64_t sum = 0;
  if (const auto* dict = v.get_if<state::dict>())
    for (const auto& item : *dict) sum += bytes_in(item.second);
  if (const auto* list = v.get_if<state::list>())
    for (const auto& item : *list) sum += bytes_in(item);
  return sum;
}

std::vector<share> shares_of(const std::vector<state::value>& states) {
  std::vector<share> all;
  for (std::size_t rank = 0; rank < states.size(); ++rank)
    all.push_back(extensions::share_of(states[rank], static_cast<int>(rank), static_cast<int>(states.size())));
  return all;
}

std::vector<std::string> receipts_of(const std::vector<state::value>& states) {
  std::vector<std::string> all;
  for (auto& one : shares_of(states)) all.push_back(one.receipt);
  return all;
}

state::value one_tensor(at::Tensor tensor) { return state::dict{{"weight", std::move(tensor)}}; }

state::value part_of(const integers& sizes, const std::vector<std::pair<integers, at::Tensor>>& pieces) {
  sharded_tensor result{sizes, at::kFloat, {}};
  for (const auto& [offsets, tensor] : pieces) result.pieces.push_back({offsets, tensor});
  return state::dict{{"moment", result.to_value()}};
}

}  // namespace

TEST_CASE("a state that any number of ranks has saved is the same for any other number", "[snapshot][sharding]") {
  const temporary_directory here;
  for (const int saved_by : {1, 2, 3, 4, 8}) {
    const auto directory = here / std::to_string(saved_by);
    save_sharded(directory, states_of(saved_by));
    for (const int loaded_by : {1, 2, 3, 4, 8})
      for (int rank = 0; rank < loaded_by; ++rank) {
        INFO("saved by " << saved_by << ", loaded by rank " << rank << " of " << loaded_by);
        const auto wanted = odd_state(rank, loaded_by);
        const auto loaded = extensions::read_sharded(directory, wanted);
        CHECK(state::equal(loaded, [&] {
          auto expected = wanted;
          expected.as<state::dict>()["nothing"] = nullptr;
          return expected;
        }()));
      }
  }
}

TEST_CASE("without a present state all tensors are whole", "[snapshot][sharding]") {
  const temporary_directory here;
  save_sharded(here / "s", states_of(3));
  const auto loaded = extensions::read_sharded(here / "s", nullptr);
  const auto& moments = loaded.at("moments");
  for (int key = 0; key < 4; ++key) {
    const auto one = sharded_tensor::from(odd_state(0, 1).at("moments").at(key));
    const auto& whole = moments.at(key).as<at::Tensor>();
    CHECK(whole.sizes() == at::IntArrayRef(one.sizes));
    if (whole.numel() > 0) CHECK(at::equal(whole, one.pieces.at(0).tensor));
  }
  CHECK(!loaded.as<state::dict>().contains("rondo"));
}

TEST_CASE("leaves that were one tensor are one again, and are written once", "[snapshot][sharding]") {
  const temporary_directory here;
  const auto tensor = at::randn({100, 100});
  const state::value state = state::dict{{"a", tensor}, {"b", tensor}, {"c", tensor.clone()}, {"d", tensor.t()}};
  std::uint64_t written = 0;
  for (const auto& one : shares_of({state, state})) written += bytes_in(one.pieces);
  CHECK(written == 3 * tensor.nbytes());
  save_sharded(here / "s", {state, state});
  const auto from = checkpoint::sharded_reader::open(here / "s");
  const auto loaded = extensions::load_sharded(from, nullptr);
  CHECK(state::equal(loaded, state));
  CHECK(from.bytes_read() == written);
  const auto at = [&](const char* key) { return loaded.at(key).as<at::Tensor>(); };
  CHECK(at("a").is_alias_of(at("b")));
  CHECK(!at("a").is_alias_of(at("c")));
  CHECK(!at("a").is_alias_of(at("d")));
}

TEST_CASE("a part is given only where the present state has a sharded tensor of these sizes", "[snapshot][sharding]") {
  const temporary_directory here;
  const auto moment = at::randn({900, 100});
  const auto replicated = at::randn({900, 100});
  const auto saved = [&](int rank) {
    return state::dict{{"moment", rows_of(moment, rank, 2)}, {"replicated", replicated}};
  };
  save_sharded(here / "s", {saved(0), saved(1)});
  const auto meta = at::empty({10, 100}, at::TensorOptions(at::kFloat).device(at::kMeta));
  const auto wanted = [&](integers sizes) {
    return sharded_tensor{std::move(sizes), at::kFloat, {{{5, 0}, meta}, {{700, 0}, meta}}}.to_value();
  };
  const auto from = checkpoint::sharded_reader::open(here / "s");
  const auto loaded = extensions::load_sharded(
      from,
      state::dict{{"replicated", wanted({900, 100})}, {"moment", wanted({901, 100})}, {"new", wanted({900, 100})}});
  CHECK(at::equal(loaded.get<at::Tensor>("moment"), moment));
  const auto parts = sharded_tensor::from(loaded.at("replicated"));
  REQUIRE(parts.pieces.size() == 2);
  CHECK(at::equal(parts.pieces[0].tensor, replicated.narrow(0, 5, 10)));
  CHECK(at::equal(parts.pieces[1].tensor, replicated.narrow(0, 700, 10)));
  CHECK(from.bytes_read() <= moment.nbytes() + 3 * 20'000);  // pieces of 16 KiB and some rows
}

TEST_CASE("parts are read with the dtype that was saved", "[snapshot][sharding]") {
  const temporary_directory here;
  const auto saved = at::randn({20, 3}).to(at::kDouble);
  save_sharded(here / "s", {state::dict{{"moment", rows_of(saved, 0, 1)}}});
  const auto wanted = state::dict{{"moment", rows_of(at::zeros({20, 3}, at::kHalf), 1, 2)}};
  const auto parts = sharded_tensor::from(extensions::read_sharded(here / "s", wanted).at("moment"));
  CHECK(parts.dtype == at::kDouble);
  CHECK(at::equal(parts.pieces.at(0).tensor, saved.narrow(0, 10, 10)));
}

TEST_CASE("tensors that are spread in other ways load in yet others", "[snapshot][sharding]") {
  const temporary_directory here;
  const auto whole = at::randn({30, 20, 10});
  // Blocks of two dimensions, one of them not contiguous in memory by nature, one rank with two of them, one with none.
  const auto block = [&](std::int64_t a, std::int64_t b, std::int64_t rows, std::int64_t columns) {
    return std::pair(integers{a, b, 0}, whole.narrow(0, a, rows).narrow(1, b, columns));
  };
  const integers sizes{30, 20, 10};
  save_sharded(here / "s", {part_of(sizes, {block(0, 0, 17, 9), block(17, 11, 13, 9)}), part_of(sizes, {}),
                            part_of(sizes, {block(0, 9, 17, 11), block(17, 0, 13, 11)})});
  const auto piece = at::empty({20, 6, 4});
  const auto wanted = part_of(sizes, {{{3, 7, 5}, piece}, {{0, 0, 0}, at::empty({1, 20, 10})}});
  const auto loaded = sharded_tensor::from(extensions::read_sharded(here / "s", wanted).at("moment"));
  CHECK(at::equal(loaded.pieces.at(0).tensor, whole.narrow(0, 3, 20).narrow(1, 7, 6).narrow(2, 5, 4)));
  CHECK(at::equal(loaded.pieces.at(1).tensor, whole.narrow(0, 0, 1)));
  CHECK(at::equal(extensions::read_sharded(here / "s", nullptr).get<at::Tensor>("moment"), whole));
}

TEST_CASE("a rank reads little more than its share", "[snapshot][sharding]") {
  const temporary_directory here;
  const std::vector<integers> shapes{{4096, 256}, {1000, 333}, {512, 64, 3, 3}, {8192, 100}, {2048}, {3001, 77}};
  std::vector<at::Tensor> moments;
  std::int64_t elements = 0;
  for (const auto& shape : shapes) {
    moments.push_back(at::randn(shape));
    elements += moments.back().numel();
  }
  // As a sharded optimizer cuts: all tensors as one line of elements, at whole rows.
  const auto state_of = [&](int rank, int world_size) {
    state::list all;
    std::int64_t at = 0;
    for (const auto& whole : moments) {
      const auto row = whole.numel() / whole.size(0);
      const auto cut = [&](int r) {
        return std::clamp<std::int64_t>((elements * r / world_size - at + row / 2) / row, 0, whole.size(0));
      };
      sharded_tensor part{whole.sizes().vec(), at::kFloat, {}};
      integers offsets(part.sizes.size(), 0);
      offsets[0] = cut(rank);
      if (cut(rank) < cut(rank + 1))
        part.pieces.push_back({offsets, whole.narrow(0, offsets[0], cut(rank + 1) - offsets[0])});
      all.push_back(part.to_value());
      at += whole.numel();
    }
    return state::value(std::move(all));
  };
  const auto root = [&](int rank, int world_size) { return state::dict{{"moments", state_of(rank, world_size)}}; };
  double worst = 0;
  for (const int saved_by : {1, 2, 3, 4, 8}) {
    std::vector<state::value> states;
    for (int rank = 0; rank < saved_by; ++rank) states.emplace_back(root(rank, saved_by));
    save_sharded(here / std::to_string(saved_by), states);
    for (const int loaded_by : {1, 2, 3, 4, 8})
      for (int rank = 0; rank < loaded_by; ++rank) {
        INFO("saved by " << saved_by << ", loaded by rank " << rank << " of " << loaded_by);
        const state::value wanted = root(rank, loaded_by);
        const auto from = checkpoint::sharded_reader::open(here / std::to_string(saved_by));
        CHECK(state::equal(extensions::load_sharded(from, wanted), wanted));
        const auto ratio = static_cast<double>(from.bytes_read()) / static_cast<double>(bytes_in(wanted));
        CHECK(ratio >= 1.0);
        CHECK(ratio <= 1.05);
        worst = std::max(worst, ratio);
      }
  }
  CAPTURE(worst);
  CHECK(worst < 1.05);
}

TEST_CASE("replicated tensors are spread evenly over the ranks", "[snapshot][sharding]") {
  state::dict state;
  for (int i = 0; i < 20; ++i) state.insert_or_assign("t" + std::to_string(i), at::zeros({100 + 37 * i, 50}));
  const state::value all(state);
  for (const int ranks : {1, 2, 3, 7, 16}) {
    std::uint64_t sum = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto bytes = bytes_in(extensions::share_of(all, rank, ranks).pieces);
      const auto share = static_cast<double>(bytes_in(all)) / ranks;
      CHECK(std::abs(static_cast<double>(bytes) - share) <= 200);  // a row
      sum += bytes;
    }
    CHECK(sum == bytes_in(all));
  }
}

TEST_CASE("pieces lie in the memory of the state", "[snapshot][sharding]") {
  auto weight = at::randn({64, 1024});
  const auto one = extensions::share_of(one_tensor(weight), 1, 2);
  REQUIRE(one.pieces.size() == 8);  // of 16 KiB
  std::int64_t row = 32;
  for (const auto& each : one.pieces) {
    const auto& piece = each.as<at::Tensor>();
    CHECK(piece.data_ptr() == weight[row].data_ptr());
    CHECK(piece.storage().nbytes() == piece.nbytes());
    CHECK(piece._version() == weight._version());
    row += piece.size(0);
  }
  CHECK(row == 64);
  weight.add_(1);
  CHECK(one.pieces[0].as<at::Tensor>()._version() == weight._version());
  CHECK(at::equal(one.pieces[0].as<at::Tensor>()[0], weight[32]));
}

TEST_CASE("pieces of what rests are made once", "[snapshot][sharding]") {
  auto weight = at::randn({64, 1024});
  auto moment = at::randn({64, 1024});
  const auto other = at::randn({64, 1024});
  const auto state = [&] { return state::dict{{"w", weight}, {"o", other}, {"m", moment}}; };
  const auto storage_of = [](const at::Tensor& t) { return t.storage().unsafeGetStorageImpl(); };
  extensions::sharer all;
  const auto share = [&] { return all.share_of(state(), 0, 1, {storage_of(weight), storage_of(moment)}); };
  const auto same_pieces = [](const extensions::share& a, const extensions::share& b) {
    std::vector<bool> same;  // of w, o and m
    for (const std::size_t first : {0, 16, 32})
      same.push_back(a.pieces[first].as<at::Tensor>().is_same(b.pieces[first].as<at::Tensor>()));
    return same;
  };
  const auto first = share();
  REQUIRE(first.pieces.size() == 48);
  const auto resting = all.resting_pieces();
  CHECK(resting->size() == 32);
  CHECK(resting->contains(storage_of(first.pieces[47].as<at::Tensor>())));

  weight.add_(1);
  const auto again = share();
  CHECK(same_pieces(first, again) == std::vector<bool>{true, false, true});
  CHECK(all.resting_pieces() == resting);
  CHECK(again.receipt == extensions::share_of(state(), 0, 1).receipt);
  CHECK(at::equal(again.pieces[0].as<at::Tensor>()[0], weight[0]));

  SECTION("a tensor in another place") {
    moment = moment.clone();
    CHECK(same_pieces(first, share()) == std::vector<bool>{true, false, false});
    CHECK(all.resting_pieces() != resting);
    CHECK(all.resting_pieces()->size() == 32);
  }
  SECTION("in the same memory with another version counter") {
    weight = weight.data();
    CHECK(same_pieces(first, share()) == std::vector<bool>{false, false, true});
  }
  SECTION("with other sizes") {
    weight = weight.narrow(0, 0, 32);
    const auto smaller = share();
    REQUIRE(smaller.pieces.size() == 40);
    CHECK(smaller.receipt == extensions::share_of(state(), 0, 1).receipt);
  }
  SECTION("no longer at rest") {
    CHECK(same_pieces(first, all.share_of(state(), 0, 1)) == std::vector<bool>{false, false, false});
    CHECK(all.resting_pieces()->empty());
  }
}

TEST_CASE("pieces keep the memory alive", "[snapshot][sharding]") {
  const auto content = numbers({1024, 4});
  std::vector<float> memory(4096);
  bool released = false;
  auto weight = at::from_blob(memory.data(), {1024, 4}, [&](void*) { released = true; });
  weight.copy_(content);
  auto one = extensions::share_of(one_tensor(weight), 0, 1);
  weight.reset();
  CHECK(!released);
  CHECK(at::equal(one.pieces.at(0).as<at::Tensor>(), content));
  one.pieces.clear();
  CHECK(released);
}

TEST_CASE("tensors that need it are made contiguous for their pieces only", "[snapshot][sharding]") {
  const auto matrix = at::randn({300, 200});
  const auto conjugated = at::randn({300, 20}, at::kComplexFloat).conj();
  const auto expanded = at::randn({1, 50}).expand({70, 50});
  const state::value state = state::dict{{"t", matrix.t()}, {"c", conjugated}, {"e", expanded}};
  const temporary_directory here;
  save_sharded(here / "s", {state, state, state});
  CHECK(state::equal(extensions::read_sharded(here / "s", nullptr), state));
}

TEST_CASE("parameters and inference tensors can be saved", "[snapshot][sharding]") {
  auto parameter = at::randn({100, 20}).set_requires_grad(true);
  at::Tensor inference;
  {
    const c10::InferenceMode guard;
    inference = at::randn({100, 20});
  }
  const state::value state = state::dict{{"p", parameter}, {"i", inference}};
  const auto one = extensions::share_of(state, 0, 1);
  CHECK(!one.pieces.at(0).as<at::Tensor>().requires_grad());
  CHECK(!one.pieces.at(0).as<at::Tensor>().is_inference());
  CHECK(one.pieces.at(1).as<at::Tensor>().is_inference());
  const temporary_directory here;
  save_sharded(here / "s", {state});
  CHECK(state::equal(extensions::read_sharded(here / "s", nullptr), state));
}

TEST_CASE("ranks that do not save the same are told apart", "[snapshot][sharding]") {
  const auto message = [](const std::vector<state::value>& states) {
    return refusal_of<state_error>([&] { static_cast<void>(extensions::index_of(states[0], receipts_of(states))); });
  };
  const auto two = [](at::Tensor a, at::Tensor b) {
    return state::dict{{"models", state::dict{{"a", std::move(a)}, {"b", std::move(b)}}}};
  };
  const auto a = at::zeros({100, 20});
  const auto b = at::zeros({50, 30});
  const state::value sound = two(a, b);
  CHECK(message({sound, sound}).empty());

  const auto other_sizes = message({sound, sound, two(a, at::zeros({30, 50}))});
  CHECK(contains(other_sizes, "models.b"));
  CHECK(contains(other_sizes, "rank 2"));
  CHECK(contains(other_sizes, "[50, 30]"));
  const auto other_dtype = message({sound, two(a.to(at::kDouble), b)});
  CHECK(contains(other_dtype, "models.a"));
  CHECK(contains(other_dtype, "rank 1"));
  const auto missing = message({sound, state::dict{{"models", state::dict{{"a", a}}}}});
  CHECK(contains(missing, "models.b"));
  CHECK(contains(missing, "is missing on rank 1"));
  const auto more = message({state::dict{{"models", state::dict{{"a", a}}}}, sound});
  CHECK(contains(more, "rank 1 has 1 more tensors"));
  CHECK(contains(more, "models.a"));
  const auto before = message({state::dict{{"models", state::dict{{"b", b}}}}, sound});
  CHECK(contains(before, "models.b"));
  CHECK(contains(before, "rank 1 has other tensors before"));
  CHECK(contains(message({two(a, a), two(a, a.clone())}), "models.b"));
  const state::value sharded = state::dict{{"models", state::dict{{"a", a}, {"b", rows_of(b, 1, 2)}}}};
  CHECK(contains(message({sound, sharded}), "models.b"));
}

TEST_CASE("parts of a sharded tensor that do not make it up are told", "[snapshot][sharding]") {
  const auto message = [](const std::vector<state::value>& states) {
    return refusal_of<state_error>([&] { static_cast<void>(extensions::index_of(states[0], receipts_of(states))); });
  };
  const auto piece = [](std::int64_t begin, std::int64_t rows) {
    return part_of({100, 3}, {{{begin, 0}, at::zeros({rows, 3})}});
  };
  CHECK(message({piece(0, 40), piece(40, 60)}).empty());
  const auto gap = message({piece(0, 40), piece(50, 50)});
  CHECK(contains(gap, "moment"));
  CHECK(contains(gap, "270 of the 300"));
  CHECK(contains(gap, "rank 1 has [50, 3] from [50, 0] on"));
  const auto overlap = message({piece(0, 51), piece(50, 50)});
  CHECK(contains(overlap, "moment"));
  CHECK(contains(overlap, "rank 0 has [51, 3] from [0, 0] on and rank 1 has [50, 3] from [50, 0] on"));
  CHECK(contains(message({piece(0, 100), piece(0, 100)}), "overlap"));
  CHECK(contains(message({part_of({100, 3}, {}), part_of({100, 3}, {})}), "no rank has any"));
}

TEST_CASE("receipts of other ranks, and what is none, are refused", "[snapshot][sharding]") {
  const auto states = states_of(2);
  auto receipts = receipts_of(states);
  const auto message = [&] {
    return refusal_of<state_error>([&] { static_cast<void>(extensions::index_of(states[0], receipts)); });
  };
  CHECK(message().empty());
  const auto sound = receipts;
  receipts = {sound[1], sound[0]};
  CHECK(contains(message(), "rank 0 of 2 was expected"));
  receipts = {sound[0]};
  CHECK(contains(message(), "rank 0 of 1 was expected"));
  for (std::size_t size = 0; size < sound[1].size(); size += 8) {
    receipts = {sound[0], sound[1].substr(0, size)};
    CHECK(!message().empty());
  }
}

TEST_CASE("what files cannot hold is refused with its path", "[snapshot][sharding]") {
  const auto message = [](at::Tensor tensor) {
    const state::value state = state::dict{{"models", state::dict{{"main", std::move(tensor)}}}};
    return refusal_of<state_error>([&] { static_cast<void>(extensions::share_of(state, 0, 1)); });
  };
  CHECK(contains(message(at::eye(100).to_sparse()), "models.main"));
  CHECK(contains(message(at::empty({100, 100}, at::TensorOptions(at::kMeta))), "models.main"));
  CHECK(contains(message(at::zeros({100, 100}, at::kComplexHalf)), "models.main"));
}

TEST_CASE("damage in what a rank needs is found, damage elsewhere is not in its way", "[snapshot][sharding]") {
  const temporary_directory here;
  const auto state = [](int rank) { return state::dict{{"m", rows_of(numbers({2000, 50}), rank, 4)}}; };
  save_sharded(here / "s", {state(0), state(1), state(2), state(3)});
  const auto file = (here / "s" / "2").string();
  std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
  const auto reader = checkpoint::sharded_reader::open(here / "s").rank_file(2);
  const auto place = reader.record("data/0").data() - reader.records().file().data();
  bytes.seekp(place + 100);
  bytes.put('\x55');
  bytes.close();
  CHECK(state::equal(extensions::read_sharded(here / "s", state(1)), state(1)));
  const auto message =
      refusal_of<format_error>([&] { static_cast<void>(extensions::read_sharded(here / "s", state(2))); });
  CHECK(contains(message, file));
  CHECK(contains(message, "'m'"));
}

}  // namespace snapshot_sharding_test
