#include <ATen/ops/ones.h>
#include <rondo/state/value.hpp>

int main() {
  const rondo::state::value one(at::ones({2, 3}));
  const auto copy = rondo::state::clone(one);
  return rondo::state::equal(one, copy) ? 0 : 1;
}
