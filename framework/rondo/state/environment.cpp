#include "rondo/state/environment.hpp"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/DeviceType.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <string_view>

namespace rondo::state {

namespace {

/// LibTorch before version 2 says it in this text only.
std::string cpu_instructions() {
  static const std::string found = [] {
    constexpr std::string_view label = "CPU capability usage: ";
    const std::string text = at::show_config();
    const auto begin = text.find(label);
    if (begin == std::string::npos) return std::string();
    const auto end = text.find('\n', begin);
    return text.substr(begin + label.size(), end - begin - label.size());
  }();
  return found;
}

/// A value of the environment as a sentence says it.
std::string in_words(const std::string& name, const value& v) {
  if (name == "threads") return fmt::format("{} threads", v.as<std::int64_t>());
  if (name == "libtorch") return "LibTorch " + v.as<std::string>();
  if (name == "device") return "device " + v.as<std::string>();
  if (name == "cpu") return "CPU instructions " + v.as<std::string>();
  return v.as<bool>() ? "deterministic algorithms only" : "any algorithms";
}

}  // namespace

dict environment_state(c10::Device device) {
  return {{"libtorch", TORCH_VERSION},
          {"device", c10::DeviceTypeName(device.type(), /*lower_case=*/true)},
          {"threads", at::get_num_threads()},
          {"cpu", cpu_instructions()},
          {"deterministic", at::globalContext().deterministicAlgorithms()}};
}

std::vector<std::string> environment_differences(const value& stored, c10::Device device) {
  const auto& then = stored.as<dict>();
  std::vector<std::string> all;
  for (const auto& [name, now] : environment_state(device)) {
    const auto* before = then.find(name);
    if (before == nullptr || before->data().index() != now.data().index() || equal(*before, now)) continue;
    all.push_back(fmt::format("{} then, {} now", in_words(name.str(), *before), in_words(name.str(), now)));
  }
  return all;
}

}  // namespace rondo::state
