#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include "rondo/async/task.hpp"
#include "rondo/error.hpp"
#include "rondo/writing/atomic_file.hpp"
#include "rondo/writing/savefun.hpp"
#include "rondo/writing/staging.hpp"

namespace rondo::writing {

/// One file to write, in one of three forms: `produce` hands over exactly `size` bytes; `save` writes the file by
/// itself; `image` is the file in staging memory that came from the writer's own `memory()`. A writer with a `savefun`
/// of its own is asked to write by it: without memory by `save`, with memory by `save_image`.
class write_request {
 public:
  /// `produce` and what it refers to must stay valid until the write completes.
  write_request(path file, std::uint64_t bytes, producer content)
      : target(std::move(file)), size(bytes), produce(std::move(content)) {}

  /// For a user's own serializer, whose size nobody knows beforehand; of writers without memory.
  write_request(path file, path_producer serializer) : target(std::move(file)), save(std::move(serializer)) {}

  /// For a writer with memory.
  write_request(path file, file_image staged)
      : target(std::move(file)), size(staged.size()), image(std::move(staged)) {}

  path target;
  std::uint64_t size = 0;
  producer produce;
  path_producer save;
  std::optional<file_image> image;
  /// Writes the file that is wanted out of `image`, which itself is not.
  image_savefun save_image;
  /// Whether a newer image may take its place before it is begun, if the writer's policy is `when_full::replace`.
  bool replaceable = true;
};

/// Thrown by `writer::write` for a file that was never begun because a newer one took its place (`when_full::replace`).
class write_superseded : public error {
 public:
  using error::error;
};

/// Throws option_error where a writer that has a format of its own is not asked to write in it: somebody who writes
/// through it keeps to himself that it has one.
void require_format(std::string_view writer, const savefun* own_format, bool asked_for);

/// Brings files to disk: whole, durable and under their names, or not at all (see write_atomically). Writers differ in
/// which thread or process does the work. One writer may serve several extensions, and again after close().
class writer {
 public:
  writer() = default;
  writer(const writer&) = delete;
  writer& operator=(const writer&) = delete;
  virtual ~writer() = default;

  /// Completes when the file is durable; fails with what write_atomically throws, or with what the producer threw.
  /// Awaited on the training thread and completes there.
  virtual task<write_receipt> write(write_request request) = 0;

  /// Completes when nothing that was handed over is unfinished. Closing twice is harmless.
  virtual task<> close() = 0;

  /// The name of the kind of writer, as options and messages spell it.
  [[nodiscard]] virtual std::string_view name() const = 0;

  /// Where the state is copied to, so that training can go on while this writer works; it is then given `image`
  /// requests. nullptr (default): the writer takes the bytes from live memory, and training waits until `write`
  /// completes. The memory lives as long as the writer.
  [[nodiscard]] virtual staging* memory() noexcept { return nullptr; }

  /// The format of this writer's files, if it is not Rondo's own (nullptr, the default). Who writes through another
  /// writer hands on that one's.
  [[nodiscard]] virtual const savefun* own_format() const noexcept { return nullptr; }
};

}  // namespace rondo::writing
