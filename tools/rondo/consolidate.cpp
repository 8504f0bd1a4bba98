#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>

#include "commands.hpp"
#include "output.hpp"
#include "rondo/checkpoint/encoder.hpp"
#include "sharded.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

struct consolidate_options {
  std::string directory;
  std::string out;
  bool force = false;
};

/// Gives the encoder the bytes of tensors in pieces, of one at a time.
class piece_source {
 public:
  piece_source(const checkpoint::sharded_reader& from, const whole_state& whole) : from_(from), whole_(whole) {}

  void read(std::size_t storage, std::uint64_t offset, std::span<std::byte> out) {
    if (!stream_ || storage != current_) stream_.emplace(from_, *whole_.storages[storage].pieces);
    current_ = storage;
    stream_->read(offset, out);
  }

 private:
  const checkpoint::sharded_reader& from_;
  const whole_state& whole_;
  std::optional<row_stream> stream_;
  std::size_t current_ = 0;
};

outcome consolidate(const consolidate_options& given) {
  const auto directory = sharded_directory(given.directory);
  if (!directory)
    throw unusable_error(fmt::format("'{}' is no sharded snapshot: no directory with a file '{}' in it",
                                     given.directory, checkpoint::sharded_index));
  require_free(given.out, given.force);
  const auto from = checkpoint::sharded_reader::open(*directory);
  from.require_all();
  const auto whole = whole_state_of(from);
  std::vector<checkpoint::storage> storages;
  for (const auto& one : whole.storages) storages.push_back({one.key, one.data, one.size});
  const checkpoint::encoder file(whole.state, std::move(storages), from.info());
  piece_source source(from, whole);
  write_file(given.out, file.size(), [&](const checkpoint::byte_sink& sink) {
    file.write(sink, [&](std::size_t storage, std::uint64_t offset, std::span<std::byte> out) {
      source.read(storage, offset, out);
    });
  });
  fmt::print("{}: {}\n", printable(given.out), human_size(std::filesystem::file_size(given.out)));
  return outcome::good;
}

}  // namespace

action consolidate_command(CLI::App& app) {
  auto* const command = app.add_subcommand("consolidate", "Make one file of a sharded snapshot");
  const auto given = std::make_shared<consolidate_options>();
  command->add_option("DIR", given->directory, "a sharded snapshot")->required();
  command->add_option("OUT", given->out, "the file, an ordinary snapshot")->required();
  command->add_flag("--force", given->force, "replace a file that is there already");
  return [given] { return consolidate(*given); };
}

}  // namespace rondo::tool
