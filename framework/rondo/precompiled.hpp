// Compiled once and shared by every target that sees LibTorch: parsing its headers dominates the build otherwise.
#pragma once

#include <fmt/format.h>
#include <torch/nn/module.h>
#include <torch/optim.h>
#include <torch/types.h>

#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_awaitable.hpp>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>
