#include "rondo/writing/simple_writer.hpp"

#include <utility>

namespace rondo::writers {

namespace {

class simple_writer final : public writing::writer {
 public:
  explicit simple_writer(std::shared_ptr<writing::file_system> files) : files_(std::move(files)) {}

  task<writing::write_receipt> write(writing::write_request request) override {
    if (request.save) co_return writing::write_atomically_by_path(*files_, request.target, request.save);
    co_return writing::write_atomically(*files_, request.target, request.size, request.produce);
  }

  task<> close() override { co_return; }

  [[nodiscard]] std::string_view name() const override { return "simple"; }

 private:
  std::shared_ptr<writing::file_system> files_;
};

}  // namespace

std::shared_ptr<writing::writer> simple(std::shared_ptr<writing::file_system> files) {
  return std::make_shared<simple_writer>(std::move(files));
}

}  // namespace rondo::writers
