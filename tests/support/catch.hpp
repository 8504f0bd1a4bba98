// The one place that knows which Catch2 is installed: v2 is a single header, v3 a library.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#include <string>
using Catch::Approx;  // global in v2
namespace Catch {
/// As v2 calls it.
inline auto Contains(const std::string& text) { return Matchers::ContainsSubstring(text); }
}  // namespace Catch
#else
#include <catch2/catch.hpp>
#endif

/// Behind the tags of a test whose forked child starts threads, which ThreadSanitizer does not allow: there it is left
/// out.
#ifdef __SANITIZE_THREAD__
#define THREADS_AFTER_FORK "[.]"
#else
#define THREADS_AFTER_FORK
#endif
