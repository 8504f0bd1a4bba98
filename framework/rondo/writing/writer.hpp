#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include "rondo/async/task.hpp"
#include "rondo/writing/atomic_file.hpp"

namespace rondo::writing {

/// One file to write. Either `produce` hands over exactly `size` bytes, or `save` writes the file by itself.
class write_request {
 public:
  /// `produce` and what it refers to must stay valid until the write completes.
  write_request(path file, std::uint64_t bytes, producer content)
      : target(std::move(file)), size(bytes), produce(std::move(content)) {}

  /// For a user's own serializer, whose size nobody knows beforehand.
  write_request(path file, path_producer serializer) : target(std::move(file)), save(std::move(serializer)) {}

  path target;
  std::uint64_t size = 0;
  producer produce;
  path_producer save;
};

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
};

}  // namespace rondo::writing
