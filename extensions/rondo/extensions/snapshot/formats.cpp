#include "rondo/extensions/snapshot/formats.hpp"

#include <fmt/format.h>
#include <zstd.h>

#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <utility>

#include "rondo/checkpoint/mapped_file.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/error.hpp"
#include "rondo/extensions/snapshot/snapshot_file.hpp"
#include "rondo/writing/file_system.hpp"

namespace rondo::formats {

namespace {

using bytes = std::vector<std::byte>;

/// What goes into a Zstandard stream piece by piece.
class compressor {
 public:
  compressor(int level, int threads, const checkpoint::byte_sink& sink)
      : sink_(sink), context_(ZSTD_createCCtx()), room_(ZSTD_CStreamOutSize()) {
    if (!context_) throw std::bad_alloc();
    set(ZSTD_c_compressionLevel, level);
    set(ZSTD_c_checksumFlag, 1);
    // A library that was built without threads refuses, and does without.
    if (threads > 1) static_cast<void>(ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_nbWorkers, threads));
  }

  void append(std::span<const std::byte> piece) {
    ZSTD_inBuffer in{piece.data(), piece.size(), 0};
    while (in.pos < in.size) step(in, ZSTD_e_continue);
  }
  void finish() {
    ZSTD_inBuffer nothing{nullptr, 0, 0};
    while (step(nothing, ZSTD_e_end) != 0) continue;
  }

 private:
  struct freed {
    void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  };

  void set(ZSTD_cParameter what, int value) { check(ZSTD_CCtx_setParameter(context_.get(), what, value)); }
  std::size_t step(ZSTD_inBuffer& in, ZSTD_EndDirective end) {
    ZSTD_outBuffer out{room_.data(), room_.size(), 0};
    const std::size_t left = check(ZSTD_compressStream2(context_.get(), &out, &in, end));
    if (out.pos != 0) sink_(std::span(room_).first(out.pos));
    return left;
  }
  static std::size_t check(std::size_t result) {
    if (ZSTD_isError(result) != 0) throw error(fmt::format("zstd cannot compress: {}", ZSTD_getErrorName(result)));
    return result;
  }

  const checkpoint::byte_sink& sink_;
  std::unique_ptr<ZSTD_CCtx, freed> context_;
  bytes room_;
};

rondo::checkpoint::snapshot_info info_of(const state::value& state) {
  const auto* root = state.get_if<state::dict>();
  const auto* iteration = root == nullptr ? nullptr : root->find("_start_iteration");
  const auto* number = iteration == nullptr ? nullptr : iteration->get_if<std::int64_t>();
  return extensions::snapshot_info_of("", number == nullptr ? 0 : *number, 0, false);
}

template <class Encoder, class Extra>
encoded encoded_by(const state::value& state, const Extra& extra) {
  // Copies of what is not in the CPU's memory live here.
  const auto described = std::make_shared<const rondo::checkpoint::described>(rondo::checkpoint::describe(state));
  const auto encoder = std::make_shared<const Encoder>(described->tree, described->views(), extra);
  return {encoder->size(), [described, encoder](const rondo::checkpoint::byte_sink& sink) { encoder->write(sink); }};
}

bytes decompressed(std::span<const std::byte> file, const std::string& where) {
  struct freed {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  const std::unique_ptr<ZSTD_DCtx, freed> context(ZSTD_createDCtx());
  if (!context) throw std::bad_alloc();
  bytes content;
  bytes room(ZSTD_DStreamOutSize());
  ZSTD_inBuffer in{file.data(), file.size(), 0};
  std::size_t wanted = 1;  // 0 at the end of the frame
  while (wanted != 0) {
    ZSTD_outBuffer out{room.data(), room.size(), 0};
    const auto before = in.pos;
    wanted = ZSTD_decompressStream(context.get(), &out, &in);
    if (ZSTD_isError(wanted) != 0)
      throw format_error(where, before, fmt::format("zstd: {}", ZSTD_getErrorName(wanted)));
    content.insert(content.end(), room.begin(), room.begin() + static_cast<std::ptrdiff_t>(out.pos));
    if (wanted != 0 && out.pos == 0 && in.pos == in.size)
      throw format_error(where, in.pos, "the compressed file ends too early");
  }
  if (in.pos != in.size) throw format_error(where, in.pos, "something follows the end of the compressed file");
  return content;
}

}  // namespace

void format::save(const writing::path& file, const state::value& state) const {
  const auto content = encode(state);
  const auto output = writing::posix_file_system()->create(file, content.size);
  content.write([&](std::span<const std::byte> piece) { output->append(piece); });
  output->close();
}

format::operator writing::savefun() const {
  if (is_rondos_own) return {};
  return {[self = *this](const writing::path& temporary, const state::value& state) { self.save(temporary, state); },
          load};
}

format checkpoint() {
  format result;
  result.encode = [](const state::value& state) {
    return encoded_by<rondo::checkpoint::encoder>(state, info_of(state));
  };
  result.load = [](const writing::path& file) {
    return rondo::checkpoint::materialize_verified(rondo::checkpoint::reader::open(file));
  };
  result.parse = [](bytes file, std::string where) {
    return rondo::checkpoint::materialize_verified(
        rondo::checkpoint::reader::from_bytes(std::move(file), std::move(where)));
  };
  result.is_rondos_own = true;
  return result;
}

format safetensors(checkpoint::safetensors_metadata metadata) {
  using rondo::checkpoint::safetensors_file;
  format result;
  result.encode = [metadata = std::move(metadata)](const state::value& state) {
    return encoded_by<rondo::checkpoint::safetensors_encoder>(state, metadata);
  };
  result.load = [](const writing::path& file) { return rondo::checkpoint::materialize(safetensors_file::open(file)); };
  result.parse = [](bytes file, std::string where) {
    return rondo::checkpoint::materialize(safetensors_file::from_bytes(std::move(file), std::move(where)));
  };
  return result;
}

format zstd(format content, int level, int threads) {
  if (level < ZSTD_minCLevel() || level > ZSTD_maxCLevel() || level == 0)
    throw option_error("level", fmt::format("{}", level),
                       fmt::format("from {} to {}, but not 0", ZSTD_minCLevel(), ZSTD_maxCLevel()));
  if (threads < 1) throw option_error("threads", fmt::format("{}", threads), "1 or more");
  const auto inside = std::make_shared<const format>(std::move(content));
  format result;
  result.encode = [inside, level, threads](const state::value& state) {
    const auto write = [content = inside->encode(state), level, threads](const rondo::checkpoint::byte_sink& sink) {
      compressor all(level, threads, sink);
      content.write([&](std::span<const std::byte> piece) { all.append(piece); });
      all.finish();
    };
    return encoded{0, write};
  };
  result.parse = [inside](const bytes& file, const std::string& where) {
    return inside->parse(decompressed(file, where), where);
  };
  result.load = [inside](const writing::path& file) {
    const rondo::checkpoint::mapped_file mapped(file);
    mapped.require_readable(0, mapped.bytes().size());
    return inside->parse(decompressed(mapped.bytes(), file.string()), file.string());
  };
  return result;
}

}  // namespace rondo::formats
