#include "rondo/data/pass.hpp"

namespace rondo::data::detail {

namespace {

std::int64_t read_count(const state::value& state, const char* key) {
  const auto count = state.get<std::int64_t>(key);
  if (count < 0) throw state_error(key, fmt::format("expected 0 or more, found {}", count));
  return count;
}

std::vector<std::int64_t> read_stream(const state::value& stream, std::int64_t index) {
  std::vector<std::int64_t> numbers;
  if (stream.is_null()) return numbers;
  for (const auto& each : stream.as<state::list>()) numbers.push_back(each.as<std::int64_t>());
  if (!numbers.empty() && (numbers.front() < 0 || numbers.front() > index))
    throw state_error(
        "", fmt::format("expected an element at or before the position {}, found {}", index, numbers.front()));
  return numbers;
}

}  // namespace

stored_position read_position(const state::value& state) {
  stored_position result{read_count(state, "epoch"), read_count(state, "position"), {}, state.at("stages")};
  try {
    result.stream = read_stream(state.at("stream"), result.index);
  } catch (const state_error& e) {
    throw e.key() == "stream" ? e : e.under("stream");
  }
  return result;
}

}  // namespace rondo::data::detail
