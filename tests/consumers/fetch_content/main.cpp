#include <rondo/error.hpp>

#include <string>

int main() {
  const rondo::option_error error("n_retains", "0", "1 or more");
  return std::string(error.what()).find("n_retains") == std::string::npos ? 1 : 0;
}
