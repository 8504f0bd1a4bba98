#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

/// Shows a program its own calls of the system that make a file durable or give it a name. To be included by one file
/// of the program, whose definitions of `rename`, `fsync` and `fdatasync` come before those of the C library.
namespace rondo::testing {

class watched_calls {
 public:
  static watched_calls& of_this_program() {
    static watched_calls all;
    return all;
  }

  /// Before and after a file gets its name.
  std::function<void(const std::string& name)> naming;
  std::function<void(const std::string& name)> named;

  /// From now on each call that has been successful makes a line: "sync PATH" or "rename PATH", the new one.
  void write_to(const std::string& file) { log_.open(file); }

  void note(const std::string& line) {
    const std::lock_guard lock(mutex_);
    if (log_.is_open()) log_ << line << std::endl;
  }

  template <class Function>
  static Function* real(const char* name) {
    return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
  }

  int sync(const char* name, int descriptor) {
    std::array<char, 4096> path{};
    const auto link = "/proc/self/fd/" + std::to_string(descriptor);
    const auto length = ::readlink(link.c_str(), path.data(), path.size() - 1);
    const int result = real<int(int)>(name)(descriptor);
    if (result == 0 && length > 0) note("sync " + std::string(path.data()));
    return result;
  }

  int rename(const char* from, const char* to) {
    const std::string name(to);
    if (naming) naming(name);
    const int result = real<int(const char*, const char*)>("rename")(from, to);
    if (result == 0) note("rename " + name);
    if (result == 0 && named) named(name);
    return result;
  }

 private:
  std::mutex mutex_;
  std::ofstream log_;
};

}  // namespace rondo::testing

extern "C" {
int rename(const char* from, const char* to) noexcept {
  return rondo::testing::watched_calls::of_this_program().rename(from, to);
}
int fsync(int descriptor) { return rondo::testing::watched_calls::of_this_program().sync("fsync", descriptor); }
int fdatasync(int descriptor) { return rondo::testing::watched_calls::of_this_program().sync("fdatasync", descriptor); }
}
