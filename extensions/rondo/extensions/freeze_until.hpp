#pragma once

#include <string>

#include "rondo/event/trigger.hpp"
#include "rondo/loop/extension.hpp"
#include "rondo/loop/parameter_groups.hpp"

namespace rondo {

struct freeze_until_options {
  /// Whose parameters, by the model's name in the loop.
  std::string model = "main";
  /// Whether batch normalisation whose parameters are all frozen is in evaluation mode meanwhile, so that its running
  /// statistics rest, too.
  bool rest_batch_norm = true;
};

/// Keeps parameters whose names match out of training until `t` fires, for fine-tuning: first the new head, then all.
///
///     loop | freeze_until("backbone.*", rondo::at({2_epochs}));
///
/// They are frozen when training starts (see `freeze`) and set free after the iteration in which `t` fires. The
/// optimizer should have all parameters from the beginning. Parameters that needed no gradient before are left alone.
///
/// Name "freeze_until", priority `reader`; a loop with several needs `.named(…)`. State: whether they are free, and the
/// memory of `t`, so that a resumed training is where the unbroken one is. Throws `option_error` before training,
/// listing the names, when nothing matches.
[[nodiscard]] extension freeze_until(name_pattern pattern, trigger t, freeze_until_options options = {});

}  // namespace rondo
