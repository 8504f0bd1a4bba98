#include "rondo/extensions/modes.hpp"

#include <stdlib.h>

#include <cerrno>
#include <string>
#include <system_error>

namespace rondo {

struct fast_run::temporary_out {
  temporary_out() {
    auto pattern = (std::filesystem::temp_directory_path() / "rondo_fast_run_XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr)
      throw io_error("make a directory for a fast run", pattern, {errno, std::generic_category()},
                     "set TMPDIR or fast_run_options::out to a directory that can be written");
    path = pattern;
  }
  temporary_out(const temporary_out&) = delete;
  temporary_out& operator=(const temporary_out&) = delete;
  ~temporary_out() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }

  std::filesystem::path path;
};

fast_run::fast_run(fast_run_options options) : options_(std::move(options)) {
  if (options_.batches < 1) throw option_error("batches", fmt::format("{}", options_.batches), "1 or more");
  if (!options_.enabled || !options_.out.empty()) return;
  temporary_ = std::make_shared<const temporary_out>();
  options_.out = temporary_->path;
}

loop_options fast_run::options(loop_options usual) const {
  if (!options_.enabled) return usual;
  usual.max_epochs = 1;
  usual.max_iterations.reset();
  usual.stop_trigger.reset();
  usual.out = options_.out;
  return usual;
}

}  // namespace rondo
