#include "rondo/checkpoint/pickle_writer.hpp"

namespace rondo::checkpoint {

namespace {

class described_tensors {
 public:
  std::optional<tensor_view> survey(const tensor_descriptor& tensor, const std::string&) {
    numbers_.push_back(keys_.add(tensor.storage_key).number);
    return view_of(tensor, numbers_.back());
  }
  std::optional<tensor_view> again(const tensor_descriptor& tensor) { return view_of(tensor, numbers_[next_++]); }

 private:
  text_table keys_;
  std::vector<std::size_t> numbers_;
  std::size_t next_ = 0;
};

}  // namespace

std::vector<std::byte> encode_pickle(const tree& state) {
  described_tensors tensors;
  return pickle_writer<tensor_descriptor, described_tensors>(tensors).write(state).bytes;
}

}  // namespace rondo::checkpoint
