#include <torch/types.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "rondo/extensions/lr_finder.hpp"
#include "rondo/loop/grad_scaler.hpp"
#include "rondo/state/random.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/ranks.hpp"
#include "support/small_loops.hpp"
#include "support/temporary_directory.hpp"

namespace ext_lr_finder_test {

using namespace rondo;
using namespace rondo::testing;

namespace {

std::string random_digest() { return state::digest_of(state::random_state()); }

/// Gradient descent on (w - 1)² * 2, whose iterations shrink the distance from 1 as long as the learning rate is below
/// 0.5 and let it grow above.
struct quadratic {
  quadratic() {
    torch::NoGradGuard no_grad;
    model->weight.fill_(5.0);
  }
  [[nodiscard]] rondo::loop loop(loop_options options = {.max_iterations = 1000}) const {
    auto step = [model = model](context&, int&) mutable -> at::Tensor {
      return (model->weight - 1.0).square().sum() * 2.0;
    };
    return rondo::loop(models(model), optimizers(optimizer), ranges::views::ints(0, 10), step, std::move(options));
  }
  torch::nn::Linear model{torch::nn::LinearOptions(1, 1).bias(false)};
  std::shared_ptr<torch::optim::SGD> optimizer =
      std::make_shared<torch::optim::SGD>(model->parameters(), torch::optim::SGDOptions(0.25).momentum(0.0));
};

}  // namespace

TEST_CASE("find_lr finds a rate that makes a quadratic fall, and where it diverges", "[ext][lr_finder]") {
  const quadratic q;
  const auto found = find_lr(q.loop(), {.start_lr = 1e-3, .end_lr = 10, .iterations = 40, .smoothing = 0.0});
  CHECK(found.diverged);
  REQUIRE(found.suggestion.has_value());
  CHECK(*found.suggestion > 5e-3);
  CHECK(*found.suggestion < 0.5);
  CHECK(found.points.front().lr == 1e-3);
  CHECK(found.points.front().loss == Approx(32.0));
  CHECK(found.points.front().smoothed == found.points.front().loss);
  CHECK(found.points.back().lr > 0.5);
  // What the first learning rates do can be computed.
  double w = 5.0;
  for (const auto& p : found.points) {
    if (p.lr > 0.01) break;
    CHECK(p.loss == Approx(2 * (w - 1) * (w - 1)).epsilon(1e-4));
    w -= p.lr * 4 * (w - 1);
  }
  // Training with the suggestion converges.
  set_learning_rate(*q.optimizer, *found.suggestion);
  q.loop({.max_iterations = 400}).run();
  CHECK(q.model->weight.item<double>() == Approx(1.0).margin(1e-3));
}

TEST_CASE("find_lr goes to the end where it is told to", "[ext][lr_finder]") {
  const quadratic q;
  SECTION("in multiples") {
    const auto found = find_lr(q.loop(), {.start_lr = 1e-5, .end_lr = 1e-1, .iterations = 5, .skip_begin = 0});
    REQUIRE(found.points.size() == 5);
    for (int i = 0; i < 5; ++i) CHECK(found.points[static_cast<std::size_t>(i)].lr == Approx(std::pow(10.0, i - 5)));
    CHECK_FALSE(found.diverged);
    CHECK(found.minimum == found.points.back().lr);
  }
  SECTION("in equal steps") {
    const auto found =
        find_lr(q.loop(), {.start_lr = 0.1, .end_lr = 0.5, .iterations = 5, .exponential = false, .skip_begin = 0});
    REQUIRE(found.points.size() == 5);
    CHECK(found.points[2].lr == Approx(0.3));
  }
  SECTION("though the loss grows") {
    CHECK(find_lr(q.loop(), {.start_lr = 0.1, .end_lr = 2, .iterations = 30, .stop_factor = {}}).points.size() == 30);
  }
  SECTION("of the loop's own goal") {
    const auto found = find_lr(q.loop({.max_iterations = 7}), {.iterations = 100});
    CHECK(found.points.size() == 7);
    CHECK_FALSE(found.suggestion.has_value());
  }
}

TEST_CASE("find_lr smooths as a mean with weights that fall", "[ext][lr_finder]") {
  const quadratic q;
  const auto found = find_lr(q.loop(), {.start_lr = 1e-2, .end_lr = 1e-1, .iterations = 12, .smoothing = 0.5});
  double sum = 0, weights = 0;
  for (const auto& p : found.points) {
    sum = 0.5 * sum + p.loss;
    weights = 0.5 * weights + 1;
    CHECK(p.smoothed == Approx(sum / weights));
  }
}

TEST_CASE("find_lr leaves everything as it was", "[ext][lr_finder]") {
  const problem p;
  const auto options = lr_finder_options{.iterations = 20};
  SECTION("an optimizer that has not been used") {}
  SECTION("one that has") { p.loop({.max_iterations = 5}).run(); }
  const auto before = p.digest();
  const auto gradient = p.model->weight.grad();
  const auto gradient_before = gradient.defined() ? gradient.clone() : gradient;
  const auto random = random_digest();
  const auto found = find_lr(p.loop({.max_epochs = 10}), options);
  CHECK(found.points.size() == 20);
  CHECK(p.digest() == before);
  CHECK(random_digest() == random);
  REQUIRE(p.model->weight.grad().defined() == gradient_before.defined());
  if (gradient_before.defined()) CHECK(at::equal(p.model->weight.grad(), gradient_before));
}

TEST_CASE("find_lr leaves everything as it was after an error", "[ext][lr_finder]") {
  const problem p;
  const auto before = p.digest();
  const auto random = random_digest();
  auto l = p.loop({.max_epochs = 10});
  l | make_extension("bad", [](context& ctx) {
    ctx.on<event::iteration_completed>([&ctx] {
      torch::rand({3});
      if (ctx.iteration() == 6) throw std::runtime_error("broken");
    });
  });
  CHECK(message_of<std::runtime_error>([&] { static_cast<void>(find_lr(std::move(l))); }) == "broken");
  CHECK(p.digest() == before);
  CHECK(random_digest() == random);
}

TEST_CASE("find_lr keeps the ratio of groups and overrules who else sets rates", "[ext][lr_finder]") {
  torch::nn::Linear model(1, 1);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<at::Tensor>{model->weight}, std::make_unique<torch::optim::SGDOptions>(0.1));
  groups.emplace_back(std::vector<at::Tensor>{model->bias}, std::make_unique<torch::optim::SGDOptions>(0.02));
  const auto optimizer = std::make_shared<torch::optim::SGD>(std::move(groups), torch::optim::SGDOptions(0.1));
  const auto lr = [&](std::size_t i) { return optimizer->param_groups()[i].options().get_lr(); };
  auto step = [model](context&, int&) mutable -> at::Tensor {
    return model->forward(torch::ones({1, 1})).square().sum();
  };
  loop l(models(model), optimizers(optimizer), ranges::views::ints(0, 10), step, {.max_epochs = 1});
  l | make_extension("watch", [&](context& ctx) {
        ctx.on<event::iteration_started>([&] { optimizer->param_groups()[0].options().set_lr(77.0); });
        ctx.on<event::update_completed>([&] { CHECK(lr(1) == Approx(0.2 * lr(0))); });
      }).at_priority(priority::snapshot);
  const auto found = find_lr(std::move(l), {.start_lr = 0.001, .end_lr = 0.01, .iterations = 4});
  CHECK(found.points.back().lr == Approx(0.01));
  CHECK(lr(0) == 0.1);
  CHECK(lr(1) == 0.02);
  set_learning_rate(*optimizer, 0.5);
  CHECK(lr(1) == Approx(0.1));
  CHECK_THROWS_AS(set_learning_rate(*optimizer, std::nan("")), option_error);
}

TEST_CASE("find_lr writes its curve", "[ext][lr_finder]") {
  temporary_directory dir;
  const quadratic q;
  const auto found =
      find_lr(q.loop({.max_iterations = 9, .out = dir.path()}), {.iterations = 3, .filename = "curve.jsonl"});
  std::ifstream in(dir / "curve.jsonl");
  std::size_t count = 0;
  for (std::string line; std::getline(in, line); ++count) {
    const auto entry = nlohmann::json::parse(line);
    REQUIRE(count < found.points.size());
    CHECK(entry.at("lr").get<double>() == found.points[count].lr);
    CHECK(entry.at("loss").get<double>() == found.points[count].loss);
    CHECK(entry.at("smoothed").get<double>() == found.points[count].smoothed);
  }
  CHECK(count == 3);
}

TEST_CASE("find_lr: a loss that is no number ends the test", "[ext][lr_finder]") {
  const quadratic q;
  auto step = [n = 0](context& ctx, int&) mutable -> void { ctx.report("loss", ++n < 4 ? 1.0 : std::nan("")); };
  loop l(models(q.model), optimizers(q.optimizer), ranges::views::ints(0, 10), step, {.max_epochs = 1});
  const auto found = find_lr(std::move(l), {.key = "loss"});
  CHECK(found.diverged);
  CHECK(found.points.size() == 3);
  CHECK_FALSE(found.suggestion.has_value());
}

TEST_CASE("find_lr says what is wrong", "[ext][lr_finder]") {
  const quadratic q;
  const auto option_of = [&](lr_finder_options options) -> std::string {
    try {
      static_cast<void>(find_lr(q.loop({.max_iterations = 3}), std::move(options)));
    } catch (const option_error& e) {
      return e.option();
    }
    return "none";
  };
  CHECK(option_of({.start_lr = 0.0}) == "start_lr");
  CHECK(option_of({.start_lr = 1.0, .end_lr = 1.0}) == "end_lr");
  CHECK(option_of({.iterations = 2}) == "iterations");
  CHECK(option_of({.smoothing = 1.0}) == "smoothing");
  CHECK(option_of({.stop_factor = 1.0}) == "stop_factor");
  CHECK(option_of({.skip_begin = -1}) == "skip_begin");
  CHECK(option_of({.skip_end = -1}) == "skip_end");
  CHECK(option_of({.filename = "a/b"}) == "filename");
  CHECK(option_of({}) == "none");
  const auto unknown =
      message_of<observation_error>([&] { static_cast<void>(find_lr(q.loop(), {.key = "trian/loss"})); });
  CHECK(contains(unknown, "trian/loss"));
  CHECK(contains(unknown, "train/loss"));
  CHECK(contains(message_of<option_error>([] { static_cast<void>(find_lr(counting_loop(4, {.max_epochs = 1}))); }),
                 "optimizer"));
}

TEST_CASE("find_lr gives all ranks the same curve, of the mean loss", "[ext][lr_finder]") {
  std::array<lr_curve, 2> found;
  on_ranks(2, [&](distributed::rank_group group) {
    const quadratic q;
    const auto rank = static_cast<std::size_t>(group.rank());
    auto step = [rank](context& ctx, int&) -> void { ctx.report("loss", rank == 0 ? 1.0 : 3.0); };
    loop l(models(q.model), optimizers(q.optimizer), ranges::views::ints(0, 4), step,
           {.max_epochs = 1, .group = group, .handle_signals = false});
    found.at(rank) = find_lr(std::move(l), {.iterations = 3, .key = "loss"});
  });
  for (const auto& curve : found) {
    REQUIRE(curve.points.size() == 3);
    for (const auto& p : curve.points) CHECK(p.loss == 2.0);
  }
}

TEST_CASE("find_lr leaves the scale of the losses as it was", "[ext][lr_finder]") {
  const quadratic q;
  const auto scaler = std::make_shared<grad_scaler>();
  const double before = scaler->factor();
  static_cast<void>(find_lr(q.loop({.max_iterations = 1000, .scaler = scaler}),
                            {.start_lr = 1.0, .end_lr = 1e30, .iterations = 40, .smoothing = 0.0}));
  CHECK(scaler->factor() == before);
}

}  // namespace ext_lr_finder_test
