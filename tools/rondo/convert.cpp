#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "commands.hpp"
#include "input.hpp"
#include "output.hpp"
#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/safetensors.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

// Where a safetensors file says which snapshot it was made of.
constexpr const char* snapshot_key = "rondo_snapshot";

constexpr std::uint64_t free_growth = std::uint64_t{1} << 30;  // bytes
constexpr std::uint64_t most_growth = 16;

struct convert_options {
  std::string in;
  std::string out;
  bool force = false;
};

bool is_named_safetensors(const std::filesystem::path& file) { return file.extension() == ".safetensors"; }

// Views are written out in full; a forged file can have one that repeats an element without end.
void require_growth(std::uint64_t from, std::uint64_t to) {
  if (to > free_growth && to / most_growth > from)
    throw unusable_error(
        fmt::format("{} would become {}, because tensors repeat their elements again and again; no training makes such",
                    human_size(from), human_size(to)));
}

void to_safetensors(const std::filesystem::path& in, const convert_options& given) {
  const auto file = open_checkpoint(in);
  sound_storages storages(file, "checking " + printable(given.in));
  checkpoint::safetensors_metadata metadata;
  if (file.info()) metadata[snapshot_key] = to_json(checkpoint::manifest{file.info()->info, {}, {}});
  const checkpoint::safetensors_encoder encoder(
      file.state(), [&](const auto& tensor) { return storages.of(tensor); }, metadata);
  require_growth(file.records().file().size(), encoder.size());
  write_file(given.out, encoder.size(), [&](const checkpoint::byte_sink& sink) { encoder.write(sink); });
}

/// What the snapshot said that the file was made of. A file that was none becomes none: it is marked so that nobody
/// goes on from it or counts it among snapshots.
checkpoint::snapshot_info info_of(const checkpoint::safetensors_file& file) {
  const auto kept = file.metadata().find(snapshot_key);
  if (kept != file.metadata().end()) return checkpoint::parse_manifest(kept->second, file.where()).info;
  checkpoint::snapshot_info info;
  info.mid_iteration = true;
  info.made_by = "rondo convert";
  return info;
}

void to_checkpoint(const std::filesystem::path& in, const convert_options& given) {
  read_through(in);
  const auto file = checkpoint::safetensors_file::open(in);
  const checkpoint::encoder encoder(file.state(), file.storages(), info_of(file));
  write_file(given.out, encoder.size(), [&](const checkpoint::byte_sink& sink) { encoder.write(sink); });
}

outcome convert(const convert_options& given) {
  const auto in = regular_file(given.in);
  const bool from_safetensors = is_named_safetensors(in) || begins_like_safetensors(in);
  if (from_safetensors == is_named_safetensors(given.out))
    throw unusable_error(from_safetensors
                             ? fmt::format("'{}' is a safetensors file already; the name of a checkpoint file does not "
                                           "end in .safetensors",
                                           given.in)
                             : fmt::format("'{}' is a checkpoint file already; the name of a safetensors file ends in "
                                           ".safetensors",
                                           given.in));
  require_free(given.out, given.force);
  if (from_safetensors)
    to_checkpoint(in, given);
  else
    to_safetensors(in, given);
  fmt::print("{}: {}\n", printable(given.out), human_size(std::filesystem::file_size(given.out)));
  return outcome::good;
}

}  // namespace

action convert_command(CLI::App& app) {
  auto* const command = app.add_subcommand("convert", "Make a safetensors file of a checkpoint, or the reverse");
  const auto given = std::make_shared<convert_options>();
  command->add_option("IN", given->in, "a snapshot, what torch.save wrote, or a safetensors file")->required();
  command->add_option("OUT", given->out, "FILE.safetensors, or any other name for a checkpoint file")->required();
  command->add_flag("--force", given->force, "replace a file that is there already");
  return [given] { return convert(*given); };
}

}  // namespace rondo::tool
