#include "rondo/extensions/observe_value.hpp"

#include <fmt/format.h>

#include "rondo/error.hpp"

namespace rondo {

extension observe_lr(observe_lr_options options) {
  auto name = "observe_" + options.key;
  auto subscribe = [options = std::move(options)](context& ctx) {
    auto& groups = ctx.optimizer(options.optimizer).param_groups();
    if (options.group >= groups.size())
      throw option_error(
          "group", fmt::format("{}", options.group),
          fmt::format("the optimizer '{}' has {} groups of parameters, from 0", options.optimizer, groups.size()));
    ctx.when_due([&groups, &ctx, key = options.key, group = options.group] {
      ctx.report(key, groups.at(group).options().get_lr());
    });
  };
  return make_extension(std::move(name), std::move(subscribe))
      .at_priority(priority::writer)
      .triggered(every(epochs(1)));
}

}  // namespace rondo
