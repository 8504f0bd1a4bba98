#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/state/load_options.hpp"

namespace rondo::state {

/// One act of loading, of one object or of several together: which stored name means which present one, and everything
/// that was found not to fit. Objects are compared first (`prepare_module_load`, `prepare_optimizer_load`,
/// `stateful_ref::prepare`), then `conclude` decides, then they are changed. One thread.
class loading {
 public:
  /// `subject` is what is being loaded, as errors name it.
  explicit loading(load_options options, std::string subject = "the state");
  loading(const loading&) = delete;
  loading& operator=(const loading&) = delete;

  [[nodiscard]] const load_options& options() const noexcept { return options_; }
  /// Whether what fits is loaded although other things do not.
  [[nodiscard]] bool tolerant() const noexcept { return options_.on_mismatch != mismatch::strict; }

  /// Ends `within` when it goes.
  class scope {
   public:
    scope(const scope&) = delete;
    scope& operator=(const scope&) = delete;
    ~scope();

   private:
    friend class loading;
    scope(loading& of, std::string path, std::string stored_path);
    loading& of_;
    std::string outer_path_;
    std::string outer_stored_path_;
  };
  /// Names that follow are those inside the object `path` (dotted, from the root), which is stored under `stored_path`.
  [[nodiscard]] scope within(std::string path, std::string stored_path);

  // ---- names -----------------------------------------------------------------------------------------------------

  /// The present name of what is stored as `name`; nothing if no pair fits it.
  [[nodiscard]] std::optional<std::string> renamed(std::string_view name);
  /// The present name of the object that is stored as `name` in `part` ("models", for example).
  [[nodiscard]] std::string renamed_object(std::string_view part, const std::string& name);

  // ---- findings --------------------------------------------------------------------------------------------------

  /// `name` is here, but not stored. `expected` says what should be there.
  void missing(std::string_view name, std::string expected);
  /// `name` is stored, but not here. `found` says what it is.
  void unexpected(std::string_view name, std::string found);
  /// `name` is on both sides and differs.
  void mismatched(std::string_view name, std::string problem);
  /// The same from an error, whose key is a name in the present scope.
  void mismatched(const state_error& e);
  /// Two stored names mean `name`: an error whatever the options say.
  void ambiguous(std::string_view name, std::string problem);
  /// Counts tensors of modules, for the report: how many fit, of how many.
  void count(std::size_t fitting, std::size_t all);

  /// A parameter that is not loaded, or that has another place than in the stored module, so that what an optimizer's
  /// state holds at its place is not its own. Known by its memory. Optimizers come after the modules.
  void displace(const at::Tensor& parameter);
  [[nodiscard]] bool is_displaced(const at::Tensor& parameter) const;

  // ---- the end ---------------------------------------------------------------------------------------------------

  /// To be called before anything is changed. Throws the `state_error` that lists all findings, if there are any and
  /// the options are strict, or if names are ambiguous. Its key is the path of the only finding, or empty.
  void require_fit();
  /// To be called at the end. Warns of the findings if the options say so.
  void report() const;

 private:
  enum class kind { missing, unexpected, mismatched, rename };
  struct finding {
    kind what;
    std::string path;
    std::string problem;
  };

  void add(kind what, std::string_view name, std::string problem);
  void add_idle_pairs();
  [[nodiscard]] std::string listed() const;

  load_options options_;
  std::string subject_;
  std::string path_;
  std::string stored_path_;
  std::vector<bool> pair_was_used_;
  bool names_matter_ = false;
  bool ambiguous_ = false;
  std::vector<finding> findings_;
  std::size_t fitting_ = 0;
  std::size_t tensors_ = 0;
  std::unordered_set<const void*> displaced_;
};

}  // namespace rondo::state
