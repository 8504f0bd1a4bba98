#pragma once

/// Everything that can be attached to a loop.

#include "rondo/extensions/call.hpp"
#include "rondo/extensions/evaluator.hpp"
#include "rondo/extensions/log_report.hpp"
#include "rondo/extensions/lr_scheduler.hpp"
#include "rondo/extensions/metrics.hpp"
#include "rondo/extensions/print_report.hpp"
#include "rondo/extensions/progress_bar.hpp"
#include "rondo/extensions/report_writer.hpp"
#include "rondo/extensions/schedules.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "rondo/extensions/tensorboard_writer.hpp"
