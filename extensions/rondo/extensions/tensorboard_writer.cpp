#include "rondo/extensions/tensorboard_writer.hpp"

#include <optional>
#include <utility>

#include "rondo/report/event_file.hpp"

namespace rondo::writers {

namespace {

class tensorboard_writer final : public report_writer {
 public:
  explicit tensorboard_writer(std::filesystem::path directory) : directory_(std::move(directory)) {}

  void begin(const std::filesystem::path& out, std::int64_t iteration) override {
    // An entry of the iteration that the snapshot was taken at was written before the snapshot, and stays.
    if (!file_) file_.emplace(out / directory_, iteration + 1);
  }
  void write(std::int64_t iteration, const numbers& values) override {
    if (file_) file_->write(iteration, values);
  }
  void end() override { file_.reset(); }

 private:
  std::filesystem::path directory_;
  std::optional<event_file> file_;
};

}  // namespace

std::shared_ptr<report_writer> tensorboard(std::filesystem::path directory) {
  return std::make_shared<tensorboard_writer>(std::move(directory));
}

}  // namespace rondo::writers
