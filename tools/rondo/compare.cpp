#include "compare.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <complex>
#include <cstring>

namespace rondo::tool {

namespace {

using checkpoint::scalar_type;

struct half {
  std::uint16_t bits;
};
struct brain {
  std::uint16_t bits;
};

double to_double(half number) {
  const int exponent = number.bits >> 10 & 0x1f;
  const double fraction = number.bits & 0x3ff;
  double magnitude = 0;
  if (exponent == 0x1f)
    magnitude = fraction == 0 ? INFINITY : NAN;
  else if (exponent == 0)
    magnitude = std::ldexp(fraction, -24);
  else
    magnitude = std::ldexp(fraction + 1024, exponent - 25);
  return (number.bits & 0x8000) != 0 ? -magnitude : magnitude;
}

double to_double(brain number) { return std::bit_cast<float>(std::uint32_t{number.bits} << 16); }

double real_distance(double a, double b) { return a == b ? 0 : std::abs(a - b); }  // inf - inf is no number

double distance(half a, half b) { return real_distance(to_double(a), to_double(b)); }
double distance(brain a, brain b) { return real_distance(to_double(a), to_double(b)); }
double distance(float a, float b) { return real_distance(a, b); }
double distance(double a, double b) { return real_distance(a, b); }
template <class T>
double distance(std::complex<T> a, std::complex<T> b) {
  return std::hypot(distance(a.real(), b.real()), distance(a.imag(), b.imag()));
}
template <std::integral T>
double distance(T a, T b) {
  const auto wide = [](T number) { return static_cast<std::uint64_t>(static_cast<std::int64_t>(number)); };
  return static_cast<double>(a < b ? wide(b) - wide(a) : wide(a) - wide(b));
}

template <class T>
T element(std::span<const std::byte> bytes, std::size_t index) {
  T value;
  std::memcpy(static_cast<void*>(&value), bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

template <class T>
void compare(difference& sum, std::span<const std::byte> a, std::span<const std::byte> b, double tolerance) {
  for (std::size_t i = 0; i < a.size() / sizeof(T); ++i) {
    if (std::memcmp(a.data() + i * sizeof(T), b.data() + i * sizeof(T), sizeof(T)) == 0) continue;
    const double far = distance(element<T>(a, i), element<T>(b, i));
    if (std::isnan(far)) {
      ++sum.different;
      ++sum.with_nan;
    } else if (tolerance == 0 || far > tolerance) {
      ++sum.different;
      sum.max_abs = std::max(sum.max_abs, far);
    }
  }
}

}  // namespace

void difference::add(scalar_type type, std::span<const std::byte> a, std::span<const std::byte> b, double tolerance) {
  if (std::memcmp(a.data(), b.data(), a.size()) == 0) return;
  switch (type) {
    case scalar_type::boolean:
    case scalar_type::uint8:
      return compare<std::uint8_t>(*this, a, b, tolerance);
    case scalar_type::int8:
      return compare<std::int8_t>(*this, a, b, tolerance);
    case scalar_type::int16:
      return compare<std::int16_t>(*this, a, b, tolerance);
    case scalar_type::int32:
      return compare<std::int32_t>(*this, a, b, tolerance);
    case scalar_type::int64:
      return compare<std::int64_t>(*this, a, b, tolerance);
    case scalar_type::float16:
      return compare<half>(*this, a, b, tolerance);
    case scalar_type::bfloat16:
      return compare<brain>(*this, a, b, tolerance);
    case scalar_type::float32:
      return compare<float>(*this, a, b, tolerance);
    case scalar_type::float64:
      return compare<double>(*this, a, b, tolerance);
    case scalar_type::complex64:
      return compare<std::complex<float>>(*this, a, b, tolerance);
    case scalar_type::complex128:
      return compare<std::complex<double>>(*this, a, b, tolerance);
  }
}

}  // namespace rondo::tool
