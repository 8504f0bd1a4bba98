#pragma once

/// Everything that an `evaluator` can measure.

#include "rondo/extensions/metrics/accuracy.hpp"
#include "rondo/extensions/metrics/additive.hpp"
#include "rondo/extensions/metrics/classification.hpp"
#include "rondo/extensions/metrics/loss.hpp"
#include "rondo/extensions/metrics/mean.hpp"
#include "rondo/extensions/metrics/metric.hpp"
#include "rondo/extensions/metrics/perplexity.hpp"
#include "rondo/extensions/metrics/regression.hpp"
#include "rondo/extensions/metrics/roc_auc.hpp"
