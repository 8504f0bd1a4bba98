#include "rondo/writing/simple_writer.hpp"

#include <utility>

namespace rondo::writers {

namespace {

class simple_writer final : public writing::writer {
 public:
  explicit simple_writer(simple_options options) : options_(std::move(options)) {}

  task<writing::write_receipt> write(writing::write_request request) override {
    writing::require_format(name(), own_format(), static_cast<bool>(request.save));
    if (request.save) co_return writing::write_atomically_by_path(*options_.files, request.target, request.save);
    co_return writing::write_atomically(*options_.files, request.target, request.size, request.produce);
  }

  task<> close() override { co_return; }

  [[nodiscard]] std::string_view name() const override { return "simple"; }
  [[nodiscard]] const writing::savefun* own_format() const noexcept override {
    return options_.savefun ? &options_.savefun : nullptr;
  }

 private:
  simple_options options_;
};

}  // namespace

std::shared_ptr<writing::writer> simple(simple_options options) {
  return std::make_shared<simple_writer>(std::move(options));
}

}  // namespace rondo::writers
