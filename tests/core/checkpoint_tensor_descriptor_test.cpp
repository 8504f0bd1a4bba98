#include "rondo/checkpoint/tensor_descriptor.hpp"

#include <limits>

#include "support/catch.hpp"
#include "support/checkpoint.hpp"

namespace checkpoint_tensor_descriptor_test {

using namespace rondo::checkpoint;
using namespace rondo::testing;

TEST_CASE("scalar types and their names belong together", "[checkpoint][tensor_descriptor]") {
  for (int i = 0; i <= static_cast<int>(scalar_type::bfloat16); ++i) {
    const auto type = static_cast<scalar_type>(i);
    CHECK(scalar_type_from_name(name(type)) == type);
    CHECK(scalar_type_from_storage(storage_global(type)) == type);
  }
  CHECK(name(scalar_type::boolean) == "bool");
  CHECK(storage_global(scalar_type::bfloat16) == "BFloat16Storage");
  CHECK(element_size(scalar_type::complex128) == 16);
  CHECK_FALSE(scalar_type_from_name("float8").has_value());
  CHECK_FALSE(scalar_type_from_storage("UntypedStorage").has_value());
}

TEST_CASE("impossible tensors are found", "[checkpoint][tensor_descriptor]") {
  constexpr auto huge = std::numeric_limits<std::int64_t>::max();
  const auto with = [](std::int64_t numel, std::int64_t offset, std::vector<std::int64_t> sizes,
                       std::vector<std::int64_t> strides) {
    return problem_of({scalar_type::float32, "0", numel, offset, std::move(sizes), std::move(strides), false, false});
  };
  CHECK_FALSE(with(6, 0, {2, 3}, {3, 1}));
  CHECK_FALSE(with(6, 1, {2, 2}, {3, 1}));
  CHECK_FALSE(with(1, 0, {}, {}));
  CHECK_FALSE(with(1, 0, {1000, 1000}, {0, 0}));
  CHECK_FALSE(with(0, 0, {0, 7}, {7, 1}));
  CHECK_FALSE(with(4, 6, {0, 0}, {2, 1}));  // x[2:, 2:] of a 2x2 tensor

  CHECK(with(6, 0, {2, 3}, {3}));
  CHECK(with(5, 0, {2, 3}, {3, 1}));
  CHECK(with(6, 1, {2, 3}, {3, 1}));
  CHECK(with(0, 0, {}, {}));
  CHECK(with(6, -1, {2}, {1}));
  CHECK(with(6, 0, {-2}, {1}));
  CHECK(with(6, 0, {2}, {-1}));
  CHECK(with(-1, 0, {0}, {1}));
  CHECK(with(huge, 0, {1}, {1}));  // in bytes beyond 64 bits
  CHECK(with(6, huge, {2}, {1}));
  CHECK(with(6, 0, {huge}, {huge}));
  CHECK(with(6, 0, {huge, huge}, {0, 0}));
  CHECK(with(6, 0, {huge, huge, 0}, {0, 0, 0}));
}

}  // namespace checkpoint_tensor_descriptor_test
