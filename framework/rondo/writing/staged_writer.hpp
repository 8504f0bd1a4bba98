#pragma once

#include <memory>
#include <string>

#include "rondo/async/task.hpp"
#include "rondo/writing/atomic_file.hpp"
#include "rondo/writing/savefun.hpp"
#include "rondo/writing/staging.hpp"
#include "rondo/writing/writer.hpp"

namespace rondo::writing {

/// What a staged writer brings its files to disk with: a thread, a process.
class image_engine {
 public:
  image_engine() = default;
  image_engine(const image_engine&) = delete;
  image_engine& operator=(const image_engine&) = delete;
  virtual ~image_engine() = default;

  /// Seals and writes one file, or has `save` (if it is not empty) write it out of the image; not called again before
  /// it has completed or its coroutine has been destroyed. Completes on the training thread when the file is durable
  /// and nobody reads the image any more, or as soon as that has failed. Throws as write_atomically. An engine that
  /// stops waiting for somebody who may still read the image calls `staging_slot::give_up` and leaves them a copy of
  /// `image`.
  virtual task<write_receipt> write(file_image image, path target, image_savefun save) = 0;

  /// Completes when nothing is unfinished; the next `write` begins anew. Not called while a `write` is under way.
  virtual task<> close() = 0;
};

/// A writer whose files wait in staging memory until `engine` gets to them: one at a time, in the order of the calls of
/// `write`. Training goes on meanwhile.
///
/// `write` throws write_superseded for a file whose place a newer one has taken. Cancelling it withdraws a file that
/// has not begun; one that has begun is finished. A request without an image is not in staging memory yet, so training
/// has to wait: `produce` is run on the calling thread into a slot (awaited, whatever `when_full` says), from which it
/// is written.
///
/// `close` waits for all files that were handed over before, then closes the engine.
[[nodiscard]] std::shared_ptr<writer> make_staged_writer(std::string name, std::unique_ptr<image_engine> engine,
                                                         staging_options options, savefun format = nullptr);

}  // namespace rondo::writing
