#pragma once

/// In which order subscribers of one event run: higher first, equal ones in the order of their registration. The
/// names and numbers are those of pytorch-pfn-extras.
namespace rondo::priority {

inline constexpr int writer = 300;     ///< produces observations: evaluators
inline constexpr int editor = 200;     ///< changes observations: averages, filters
inline constexpr int reader = 100;     ///< reads observations: logs, schedules (default)
inline constexpr int snapshot = -100;  ///< saves the state that all the others have left behind

}  // namespace rondo::priority
