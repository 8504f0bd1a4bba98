#include "rondo/writing/staged_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <list>
#include <system_error>
#include <utility>

#include "rondo/async/continuation.hpp"
#include "rondo/async/park.hpp"
#include "rondo/error.hpp"

namespace rondo::writing {

namespace {

// Runs the producer of a request into a slot.
file_image filled(std::shared_ptr<staging_slot> slot, const write_request& request) {
  const file_image image(std::move(slot), request.size, 0);
  const auto refuse = [&](std::uint64_t produced) {
    throw io_error("write", request.target, std::make_error_code(std::errc::invalid_argument),
                   fmt::format("{} bytes were announced, {} were produced", request.size, produced));
  };
  std::uint64_t filled = 0;
  request.produce([&](std::span<const std::byte> bytes) {
    if (bytes.size() > request.size - filled) refuse(filled + bytes.size());
    std::copy(bytes.begin(), bytes.end(), image.bytes().begin() + static_cast<std::ptrdiff_t>(filled));
    filled += bytes.size();
  });
  if (filled != request.size) refuse(filled);
  return image;
}

// Who writes, and behind him those who want to. Event loops may be destroyed at any point of that, and the writer be
// used by the next one: what counts is only whose frames are still there.
class turn {
 public:
  using line = std::list<turn*>;

  explicit turn(std::shared_ptr<line> all) : line_(std::move(all)) { line_->push_back(this); }
  turn(const turn&) = delete;
  turn& operator=(const turn&) = delete;
  ~turn() {
    const bool was_first = first();
    line_->remove(this);
    if (was_first && !line_->empty() && line_->front()->rest_) line_->front()->rest_.post();
  }

  /// Completes when all those before are gone. Cancellation throws operation_aborted.
  [[nodiscard]] task<> come() {
    const bool now = first();
    if (!now) co_await park(rest_);
  }

 private:
  [[nodiscard]] bool first() const noexcept { return line_->front() == this; }

  std::shared_ptr<line> line_;
  continuation<> rest_;
};

class staged_writer final : public writer {
 public:
  staged_writer(std::string name, std::unique_ptr<image_engine> engine, staging_options options, savefun format)
      : name_(std::move(name)), format_(std::move(format)), memory_(options), engine_(std::move(engine)) {}

  task<write_receipt> write(write_request request) override {
    require_format(name_, own_format(), static_cast<bool>(request.save_image));
    if (request.image) {
      if (request.replaceable) request.image->slot().hand_over();
      return write_image(std::move(request));
    }
    return produce(std::move(request));
  }

  task<> close() override {
    turn mine(line_);
    co_await mine.come();
    co_await engine_->close();
  }

  [[nodiscard]] std::string_view name() const override { return name_; }
  [[nodiscard]] staging* memory() noexcept override { return &memory_; }
  [[nodiscard]] const savefun* own_format() const noexcept override { return format_ ? &format_ : nullptr; }

 private:
  task<write_receipt> write_image(write_request request) {
    turn mine(line_);
    co_await mine.come();
    const bool newest = request.image->slot().begin_writing();
    if (!newest) {
      throw write_superseded(
          fmt::format("'{}' was not written: a newer file took its place in the queue", request.target.string()));
    }
    const write_receipt receipt =
        co_await engine_->write(std::move(*request.image), std::move(request.target), std::move(request.save_image));
    co_return receipt;
  }

  task<write_receipt> produce(write_request request) {
    auto slot = co_await memory_.acquire(request.size, when_full::wait);
    auto image = filled(std::move(slot), request);
    image.slot().hand_over();
    request.image.emplace(std::move(image));
    const write_receipt receipt = co_await write_image(std::move(request));
    co_return receipt;
  }

  std::string name_;
  savefun format_;
  staging memory_;
  std::shared_ptr<turn::line> line_ = std::make_shared<turn::line>();
  std::unique_ptr<image_engine> engine_;
};

}  // namespace

std::shared_ptr<writer> make_staged_writer(std::string name, std::unique_ptr<image_engine> engine,
                                           staging_options options, savefun format) {
  return std::make_shared<staged_writer>(std::move(name), std::move(engine), options, std::move(format));
}

}  // namespace rondo::writing
