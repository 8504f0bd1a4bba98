#include "rondo/checkpoint/file_format.hpp"

#include <fmt/format.h>
#include <zstd.h>

#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <variant>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

using description_json = nlohmann::json;

// ---- formats; each is described by an object with its name as the only key

template <class Encoder, class Extra>
encoded_file encoded_by(const tree& state, std::vector<storage> storages, const Extra& extra) {
  const auto encoder = std::make_shared<const Encoder>(state, std::move(storages), extra);
  return {encoder->size(), [encoder](const byte_sink& sink) { encoder->write(sink); }};
}

class checkpoint_file : public file_format {
 public:
  encoded_file encode(const tree& state, std::vector<storage> storages, const snapshot_info& info) const override {
    return encoded_by<encoder>(state, std::move(storages), info);
  }
  std::string description() const override { return R"({"checkpoint":{}})"; }
};

// Calls `visit(path, content)` for everything in a tree that is no list, tuple or dict.
template <class Visit>
void for_each_leaf(const tree& node, std::string& path, const Visit& visit) {
  const auto below = [&](const std::string& key, const tree& item) {
    const auto length = path.size();
    if (length != 0) path += '.';
    path += key;
    for_each_leaf(item, path, visit);
    path.resize(length);
  };
  const auto each = [&](const tree::list& items) {
    for (std::size_t i = 0; i < items.size(); ++i) below(std::to_string(i), items[i]);
  };
  if (const auto* list = node.get_if<tree::list>()) {
    each(*list);
  } else if (const auto* tuple = node.get_if<tree::tuple>()) {
    each(tuple->items);
  } else if (const auto* dict = node.get_if<tree::dict>()) {
    for (const auto& [key, item] : *dict) below(key.str(), item);
  } else {
    visit(path, node);
  }
}

class libtorch_file final : public checkpoint_file {
 public:
  encoded_file encode(const tree& state, std::vector<storage> storages, const snapshot_info& info) const override {
    std::string start;
    for_each_leaf(state, start, [](const std::string& path, const tree& leaf) {
      if (leaf.get_if<state::bytes>() != nullptr)
        throw state_error(path, "LibTorch has no bytes; save a tensor of uint8 in their place");
    });
    return checkpoint_file::encode(state, std::move(storages), info);
  }
  std::string description() const override { return R"({"libtorch":{}})"; }
};

class safetensors_file_format final : public file_format {
 public:
  explicit safetensors_file_format(safetensors_metadata metadata) : metadata_(std::move(metadata)) {}
  encoded_file encode(const tree& state, std::vector<storage> storages, const snapshot_info&) const override {
    return encoded_by<safetensors_encoder>(state, std::move(storages), metadata_);
  }
  std::string description() const override { return description_json{{"safetensors", metadata_}}.dump(); }

 private:
  safetensors_metadata metadata_;
};

class zstd_file final : public file_format {
 public:
  zstd_file(std::shared_ptr<const file_format> content, int level, int threads)
      : content_(std::move(content)), level_(level), threads_(threads) {
    check_compression(level, threads);
  }
  encoded_file encode(const tree& state, std::vector<storage> storages, const snapshot_info& info) const override {
    return compressed(content_->encode(state, std::move(storages), info), level_, threads_);
  }
  std::string description() const override {
    const description_json inside{
        {"level", level_}, {"threads", threads_}, {"content", description_json::parse(content_->description())}};
    return description_json{{"zstd", inside}}.dump();
  }

 private:
  std::shared_ptr<const file_format> content_;
  int level_;
  int threads_;
};

std::shared_ptr<const file_format> make_described(const description_json& description) {
  if (!description.is_object() || description.size() != 1)
    throw format_error("description of a format", 0, "it has not one name");
  const std::string& name = description.begin().key();
  const description_json& options = description.begin().value();
  if (name == "checkpoint") return checkpoint_format();
  if (name == "libtorch") return libtorch_format();
  if (name == "safetensors") return safetensors_format(options.get<safetensors_metadata>());
  if (name == "zstd")
    return zstd_format(make_described(options.at("content")), options.at("level"), options.at("threads"));
  throw format_error("description of a format", 0, fmt::format("there is no format '{}'", name));
}

// ---- Zstandard

/// What goes into a frame piece by piece.
class compressor {
 public:
  compressor(int level, int threads, const byte_sink& sink)
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

  const byte_sink& sink_;
  std::unique_ptr<ZSTD_CCtx, freed> context_;
  std::vector<std::byte> room_;
};

// ---- images

std::vector<storage> storages_of(const reader& file) {
  std::vector<storage> result;
  std::unordered_set<std::string> known;
  std::string start;
  for_each_leaf(file.state(), start, [&](const std::string&, const tree& leaf) {
    const auto* tensor = leaf.get_if<tensor_descriptor>();
    if (tensor != nullptr && known.insert(tensor->storage_key).second)
      result.push_back({tensor->storage_key, file.storage(*tensor)});
  });
  return result;
}

}  // namespace

std::shared_ptr<const file_format> checkpoint_format() { return std::make_shared<checkpoint_file>(); }

std::shared_ptr<const file_format> libtorch_format() { return std::make_shared<libtorch_file>(); }

std::shared_ptr<const file_format> safetensors_format(safetensors_metadata metadata) {
  return std::make_shared<safetensors_file_format>(std::move(metadata));
}

std::shared_ptr<const file_format> zstd_format(std::shared_ptr<const file_format> content, int level, int threads) {
  return std::make_shared<zstd_file>(std::move(content), level, threads);
}

std::shared_ptr<const file_format> described_format(std::string_view description) {
  try {
    return make_described(description_json::parse(description));
  } catch (const description_json::exception& e) {
    throw format_error("description of a format", 0, e.what());
  }
}

encoded_file compressed(encoded_file content, int level, int threads) {
  check_compression(level, threads);
  const auto write = [content = std::move(content), level, threads](const byte_sink& sink) {
    compressor all(level, threads, sink);
    content.write([&](std::span<const std::byte> piece) { all.append(piece); });
    all.finish();
  };
  return {0, write};
}

void check_compression(int level, int threads) {
  if (level < ZSTD_minCLevel() || level > ZSTD_maxCLevel() || level == 0)
    throw option_error("level", fmt::format("{}", level),
                       fmt::format("from {} to {}, but not 0", ZSTD_minCLevel(), ZSTD_maxCLevel()));
  if (threads < 1) throw option_error("threads", fmt::format("{}", threads), "1 or more");
}

std::vector<std::byte> decompressed(std::span<const std::byte> file, const std::string& where) {
  struct freed {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  const std::unique_ptr<ZSTD_DCtx, freed> context(ZSTD_createDCtx());
  if (!context) throw std::bad_alloc();
  std::vector<std::byte> content;
  std::vector<std::byte> room(ZSTD_DStreamOutSize());
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

encoded_file encode_image(const file_format& format, std::span<const std::byte> image, std::string where) {
  const auto file = reader::from_image(image, std::move(where));
  return format.encode(file.state(), storages_of(file), file.info() ? file.info()->info : snapshot_info());
}

}  // namespace rondo::checkpoint
