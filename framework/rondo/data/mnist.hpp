#pragma once

#include <filesystem>

#include "rondo/data/tensor_dataset.hpp"

namespace rondo::data {

/// Which part of a data set.
enum class split { train, test };

/// How pixels become numbers: (byte / 255 - mean) / std. By default they lie in [0, 1].
struct mnist_options {
  /// Any finite number.
  double mean = 0.0;
  /// Finite and above zero.
  double std = 1.0;
};

/// Mean and standard deviation of the pixels of the 60,000 training images, which normalise them to mean 0 and
/// deviation 1.
inline constexpr mnist_options fashion_mnist_normalised{.mean = 0.2860, .std = 0.3530};
inline constexpr mnist_options mnist_normalised{.mean = 0.1307, .std = 0.3081};

/// Where Debian's package dataset-fashion-mnist puts the files.
inline constexpr const char* fashion_mnist_root = "/usr/share/datasets/fashion-mnist";

/// Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf, 2017): 60,000 training and 10,000 test images of clothes in ten
/// classes. `data` is float32 [1, 28, 28], `target` int64. Reads `{train,t10k}-images-idx3-ubyte` and
/// `{train,t10k}-labels-idx1-ubyte` from the folder `root`, each plain or with `.gz` (the plain one wins), into memory:
/// 188 MB for the training images.
///
/// Throws `option_error` for bad options, `io_error` when folder or file is missing (it says which names were looked
/// for and where to get them), `format_error` for a damaged file or when images and labels do not fit together.
[[nodiscard]] tensor_dataset fashion_mnist(const std::filesystem::path& root = fashion_mnist_root,
                                           split part = split::train, const mnist_options& options = {});

/// The same for any folder with the files of MNIST (handwritten digits) or of a data set in its format. The image size
/// is that of the files.
[[nodiscard]] tensor_dataset mnist(const std::filesystem::path& root, split part = split::train,
                                   const mnist_options& options = {});

}  // namespace rondo::data
