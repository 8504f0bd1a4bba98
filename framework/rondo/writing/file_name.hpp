#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace rondo::writing {

/// What may stand between the braces of a template.
struct name_field {
  enum class kind { integer, real };

  std::string name;
  kind type = kind::integer;
  bool finite = true;  ///< values that are not are refused; else they become "nan" and "inf"
};

/// A value per field name.
using name_values = std::map<std::string, std::variant<std::int64_t, double>, std::less<>>;

/// A pattern of file names such as `snapshot_iter_{iteration}`, which makes names from values and, exactly inversely,
/// values from names.
///
/// A placeholder is `{field}` or `{field:format}`, also with a dot before the field (`{.iteration}`), as
/// pytorch-pfn-extras writes it. The format is a subset of fmt's: `+`, `0`, a width and `d` for integers; `+`, `0`, a
/// width, `.precision` and one of `f F e E g G` for reals. `{{` and `}}` stand for single braces.
class file_name_template {
 public:
  /// Throws option_error("filename", …) for an unknown field or a bad format; for an empty text, one of more than 200
  /// bytes or with control characters; for a name that begins with a dot or has a path separator outside of
  /// placeholders, because names stay inside the output directory; and when two placeholders follow each other so
  /// closely that names could be read in two ways.
  file_name_template(std::string_view text, std::vector<name_field> fields);

  /// The name for `values`, which must hold each field that the template uses; others are ignored.
  /// Throws option_error for a missing value, a value of the wrong kind or not finite, and a name over 200 bytes.
  [[nodiscard]] std::string format(const name_values& values) const;

  /// The values of the fields that the template uses, or nothing unless `format` makes exactly this name from them. A
  /// real value is what is left of it in the name.
  [[nodiscard]] std::optional<name_values> parse(std::string_view name) const;

  /// Whether the template uses the field.
  [[nodiscard]] bool has_field(std::string_view name) const;

  [[nodiscard]] const std::string& text() const noexcept { return text_; }

 private:
  using value = std::variant<std::int64_t, double>;

  // Plain text, followed by a placeholder unless it is the last piece.
  struct piece {
    std::string text;
    std::string field;
    std::string format;
    name_field::kind type = name_field::kind::integer;
    bool finite = true;
  };

  void read_pieces(const std::vector<name_field>& fields);
  void read_placeholder(std::string_view inside, const std::vector<name_field>& fields);
  void expect_plain_name() const;
  void expect_separators() const;
  [[noreturn]] void reject(const std::string& allowed) const;
  [[nodiscard]] std::string format_value(const piece& piece, const value& value) const;
  [[nodiscard]] std::optional<value> parse_value(const piece& piece, std::string_view text) const;
  [[nodiscard]] bool parse_from(std::size_t index, std::string_view rest, name_values& values) const;

  std::string text_;
  std::vector<piece> pieces_;
  std::string tail_;
};

}  // namespace rondo::writing
