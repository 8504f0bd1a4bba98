#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace rondo::writing {

/// Names of unfinished files: ".<name>.tmp-<process>-<16 hexadecimal digits>". The digits tell the host (its boot, and
/// the namespace of its process numbers), when the process started, and number the names that it makes:
///
///     .snapshot_iter_7.tmp-4711-3fa94c 0b21d 00007
///                          process host   start number
///
/// So a number that another process has got since, a zombie, and a process of another host are told apart from the
/// one that writes.
[[nodiscard]] std::string temporary_name(const std::filesystem::path& target, pid_t process);

/// Whose a temporary is.
struct temporary_owner {
  enum class state {
    here,       ///< this very process
    running,    ///< another one on this host
    gone,       ///< ended, a zombie included; or the number belongs to another process now
    elsewhere,  ///< of another host, boot or container, where nobody here can look
  };
  pid_t process = 0;
  state what = state::gone;
};

/// Nothing for a name that is none of these.
[[nodiscard]] std::optional<temporary_owner> owner_of(std::string_view name);

}  // namespace rondo::writing
