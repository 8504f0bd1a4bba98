#include "rondo/writing/file_name.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "rondo/error.hpp"

namespace rondo::writing {

namespace {

constexpr std::size_t longest_name = 200;
constexpr std::string_view digits = "0123456789";
constexpr std::string_view integer_characters = "+-0123456789";
constexpr std::string_view real_characters = "+-.0123456789eEnaif";

std::string_view take(std::string_view& text, std::string_view allowed, std::size_t most) {
  const auto count = std::min({text.find_first_not_of(allowed), text.size(), most});
  const auto taken = text.substr(0, count);
  text.remove_prefix(count);
  return taken;
}

bool valid_format(std::string_view format, name_field::kind type) {
  constexpr std::size_t most_digits = 2;
  take(format, "+", 1);
  take(format, "0", 1);
  take(format, digits, most_digits);
  if (type == name_field::kind::integer) {
    take(format, "d", 1);
    return format.empty();
  }
  if (!take(format, ".", 1).empty() && take(format, digits, most_digits).empty()) return false;
  take(format, "fFeEgG", 1);
  return format.empty();
}

bool is_control(char c) {
  const auto code = static_cast<unsigned char>(c);
  return code < 0x20 || code == 0x7f;
}

// A NUL or a newline would cut or break the message.
std::string visible(std::string_view text) {
  std::string result;
  for (const auto c : text) result += is_control(c) ? fmt::format("\\x{:02x}", c) : std::string(1, c);
  return result;
}

template <class Number>
std::optional<Number> number_from(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  Number number{};
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) return std::nullopt;
  return number;
}

}  // namespace

file_name_template::file_name_template(std::string_view text, std::vector<name_field> fields) : text_(text) {
  expect_plain_name();
  read_pieces(fields);
  expect_separators();
}

void file_name_template::reject(const std::string& allowed) const {
  throw option_error("filename", visible(text_), allowed);
}

void file_name_template::expect_plain_name() const {
  if (text_.empty()) reject("a name that is not empty");
  if (text_.size() > longest_name) reject(fmt::format("a name of at most {} bytes", longest_name));
  if (text_.front() == '.') reject("a name that does not begin with a dot");
  const bool control = std::any_of(text_.begin(), text_.end(), is_control);
  if (control) reject("a name without control characters");
}

void file_name_template::read_pieces(const std::vector<name_field>& fields) {
  std::string_view rest = text_;
  while (!rest.empty()) {
    const auto c = rest.front();
    const bool doubled = rest.size() > 1 && rest[1] == c;
    if ((c == '{' || c == '}') && doubled) {
      tail_ += c;
      rest.remove_prefix(2);
    } else if (c == '{') {
      const auto end = rest.find('}');
      if (end == std::string_view::npos) reject("a '}' for every '{'; '{{' stands for a brace");
      read_placeholder(rest.substr(1, end - 1), fields);
      rest.remove_prefix(end + 1);
    } else if (c == '}') {
      reject("a '{' for every '}'; '}}' stands for a brace");
    } else {
      if (c == '/') reject("a plain name: files stay in the output directory");
      tail_ += c;
      rest.remove_prefix(1);
    }
  }
}

void file_name_template::read_placeholder(std::string_view inside, const std::vector<name_field>& fields) {
  const auto colon = inside.find(':');
  auto name = inside.substr(0, colon);
  const auto format = colon == std::string_view::npos ? std::string_view() : inside.substr(colon + 1);
  if (!name.empty() && name.front() == '.') name.remove_prefix(1);
  const auto field = std::find_if(fields.begin(), fields.end(), [&](const auto& known) { return known.name == name; });
  if (field == fields.end()) {
    std::vector<std::string> known;
    for (const auto& each : fields) known.push_back("{" + each.name + "}");
    reject(fmt::format("one of the placeholders {}, not {{{}}}", fmt::join(known, ", "), name));
  }
  if (!valid_format(format, field->type)) {
    reject(field->type == name_field::kind::integer
               ? fmt::format("a format like {{{0}}} or {{{0}:08}} for the integer {0}", name)
               : fmt::format("a format like {{{0}}} or {{{0}:.2f}} for the real number {0}", name));
  }
  const auto formatting = format.empty() ? std::string("{}") : fmt::format("{{:{}}}", format);
  pieces_.push_back({std::exchange(tail_, {}), std::string(name), formatting, field->type, field->finite});
}

// A character that no number contains must stand between two numbers, or names could be read in two ways.
void file_name_template::expect_separators() const {
  for (std::size_t index = 1; index < pieces_.size(); ++index) {
    const bool real =
        pieces_[index].type == name_field::kind::real || pieces_[index - 1].type == name_field::kind::real;
    const bool finite = pieces_[index].finite && pieces_[index - 1].finite;
    const auto ambiguous = !real ? digits : std::string_view(finite ? "0123456789.eE" : "0123456789.eEnaif");
    if (pieces_[index].text.find_first_not_of(ambiguous) == std::string::npos) {
      reject(fmt::format("a separator such as '_' between {{{}}} and {{{}}}", pieces_[index - 1].field,
                         pieces_[index].field));
    }
  }
}

std::string file_name_template::format_value(const piece& piece, const value& value) const {
  return std::visit([&](auto number) { return fmt::format(fmt::runtime(piece.format), number); }, value);
}

std::string file_name_template::format(const name_values& values) const {
  std::string name;
  for (const auto& piece : pieces_) {
    const auto found = values.find(piece.field);
    if (found == values.end()) reject(fmt::format("a template without {{{}}}, which has no value", piece.field));
    const auto* real = std::get_if<double>(&found->second);
    if ((real != nullptr) != (piece.type == name_field::kind::real)) {
      reject(fmt::format("a value of the declared kind for {{{}}}", piece.field));
    }
    if (piece.finite && real != nullptr && !std::isfinite(*real)) {
      reject(fmt::format("finite values of {{{}}}, not {}", piece.field, *real));
    }
    name += piece.text + format_value(piece, found->second);
  }
  name += tail_;
  if (name.size() > longest_name) reject(fmt::format("names of at most {} bytes, not '{}'", longest_name, name));
  return name;
}

std::optional<file_name_template::value> file_name_template::parse_value(const piece& piece,
                                                                         std::string_view text) const {
  std::optional<value> parsed;
  if (piece.type == name_field::kind::integer) {
    if (const auto number = number_from<std::int64_t>(text)) parsed = *number;
  } else {
    if (const auto number = number_from<double>(text)) parsed = *number;
  }
  const auto* const real = parsed ? std::get_if<double>(&*parsed) : nullptr;
  if (real != nullptr && piece.finite && !std::isfinite(*real)) return std::nullopt;
  if (!parsed || format_value(piece, *parsed) != text) return std::nullopt;
  return parsed;
}

bool file_name_template::parse_from(std::size_t index, std::string_view rest, name_values& values) const {
  if (index == pieces_.size()) return rest == tail_;
  const auto& piece = pieces_[index];
  if (rest.substr(0, piece.text.size()) != piece.text) return false;
  rest.remove_prefix(piece.text.size());
  const auto padding = std::min(rest.find_first_not_of(' '), rest.size());
  const auto allowed = piece.type == name_field::kind::integer ? integer_characters : real_characters;
  const auto end = std::min(rest.find_first_not_of(allowed, padding), rest.size());
  for (auto length = end; length > 0; --length) {
    const auto parsed = parse_value(piece, rest.substr(0, length));
    if (!parsed) continue;
    const auto known = values.find(piece.field);
    if (known != values.end() && known->second != *parsed) continue;
    const bool first = values.emplace(piece.field, *parsed).second;
    if (parse_from(index + 1, rest.substr(length), values)) return true;
    if (first) values.erase(piece.field);
  }
  return false;
}

std::optional<name_values> file_name_template::parse(std::string_view name) const {
  name_values values;
  if (name.size() > longest_name || !parse_from(0, name, values)) return std::nullopt;
  return values;
}

bool file_name_template::has_field(std::string_view name) const {
  return std::any_of(pieces_.begin(), pieces_.end(), [&](const auto& piece) { return piece.field == name; });
}

}  // namespace rondo::writing
