#include "rondo/distributed/sharded_optimizer.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/schedulers/step_lr.h>
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/data/data.hpp"
#include "rondo/distributed/consolidate.hpp"
#include "rondo/error.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/state/digest.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/state/sharded_tensor.hpp"
#include "support/catch.hpp"
#include "support/python.hpp"
#include "support/ranks.hpp"
#include "support/run_task.hpp"
#include "support/sharded.hpp"
#include "support/temporary_directory.hpp"

namespace distributed_sharded_optimizer_test {

using namespace rondo;
using distributed::rank_group;
using distributed::sharded_optimizer;
using distributed::sharded_optimizer_base;
using state::sharded_tensor;
using testing::failures_on_ranks;
using testing::on_ranks;
using testing::run_task;
using torch::optim::Adam;
using torch::optim::AdamOptions;
using torch::optim::AdamW;
using torch::optim::AdamWOptions;
using torch::optim::OptimizerParamGroup;
using torch::optim::SGD;
using torch::optim::SGDOptions;

namespace {

using tensors = std::vector<at::Tensor>;
using groups = std::vector<OptimizerParamGroup>;
using optimizer_ptr = std::unique_ptr<torch::optim::Optimizer>;

/// Catch's macros belong to one thread.
void require(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error(what);
}

at::Tensor noise(at::IntArrayRef sizes, std::uint64_t seed, at::ScalarType dtype = at::kFloat) {
  return at::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(seed), at::kDouble).to(dtype);
}

/// Of odd shapes and several kinds; the same in every call. The eighth is frozen.
tensors odd_parameters() {
  tensors all{noise({37, 11}, 1),
              noise({13}, 2),
              noise({}, 3),
              noise({1, 301}, 4),
              noise({5, 3, 3, 3}, 5),
              at::empty({0, 4}),
              noise({7, 1}, 6),
              noise({50, 3}, 7),
              noise({129, 5}, 8, at::kDouble),
              noise({9, 4, 6, 6}, 9).contiguous(at::MemoryFormat::ChannelsLast),
              at::empty({3, 0}),
              noise({1}, 10)};
  for (std::size_t i = 0; i < all.size(); ++i) all[i].set_requires_grad(i != 7);
  return all;
}

constexpr std::size_t frozen = 7;
constexpr std::size_t sometimes_unused = 4;

/// The gradients of one iteration, as data_parallel leaves them: the same on every rank.
void give_gradients(const tensors& parameters, int iteration) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    auto parameter = parameters[i];
    parameter.mutable_grad() = at::Tensor();
    if (i == frozen || (i == sometimes_unused && iteration % 3 == 0)) continue;
    const auto seed = static_cast<std::uint64_t>(1000 + iteration * 100) + i;
    auto gradient = at::empty_like(parameter);
    gradient.copy_(noise(parameter.sizes(), seed, parameter.scalar_type()));
    parameter.mutable_grad() = gradient;
  }
}

/// An optimizer, with and without ranks.
struct optimizer_case {
  std::string name;
  std::function<optimizer_ptr(const tensors&)> plain;
  std::function<std::unique_ptr<sharded_optimizer_base>(const tensors&, const rank_group&)> sharded;
};

/// Three groups, of which the second has other options and the third those of the optimizer.
template <class Options>
groups three_groups(const tensors& all, const Options& options) {
  Options slower = options;
  slower.lr(options.lr() * 0.5).weight_decay(0.03);
  const auto part = [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
    return tensors(all.begin() + begin, all.begin() + end);
  };
  groups result;
  result.emplace_back(part(0, 3), std::make_unique<Options>(options));
  result.emplace_back(part(3, 8), std::make_unique<Options>(slower));
  result.emplace_back(part(8, static_cast<std::ptrdiff_t>(all.size())));
  return result;
}

template <class Optimizer, class Options>
optimizer_case case_of(const std::string& name, const Options& options) {
  return {name, [=](const tensors& all) { return std::make_unique<Optimizer>(three_groups(all, options), options); },
          [=](const tensors& all, const rank_group& group) {
            return std::make_unique<sharded_optimizer<Optimizer>>(three_groups(all, options), options, group);
          }};
}

const std::vector<optimizer_case>& cases() {
  static const std::vector<optimizer_case> all{
      case_of<SGD>("SGD", SGDOptions(0.1)),
      case_of<SGD>("SGD with momentum", SGDOptions(0.1).momentum(0.9).dampening(0.1).weight_decay(0.01)),
      case_of<SGD>("SGD with Nesterov momentum", SGDOptions(0.1).momentum(0.9).nesterov(true).weight_decay(0.01)),
      case_of<Adam>("Adam", AdamOptions(0.01)),
      case_of<Adam>("Adam with amsgrad", AdamOptions(0.01).amsgrad(true).weight_decay(0.01)),
      case_of<AdamW>("AdamW", AdamWOptions(0.01).weight_decay(0.1)),
      case_of<AdamW>("AdamW with amsgrad", AdamWOptions(0.01).amsgrad(true).betas(std::make_tuple(0.8, 0.99))),
  };
  return all;
}

const optimizer_case& case_named(const std::string& name) {
  return *std::ranges::find(cases(), name, &optimizer_case::name);
}

bool same_bits(const tensors& a, const tensors& b) {
  return std::ranges::equal(
      a, b, [](const at::Tensor& x, const at::Tensor& y) { return state::equal(x.detach(), y.detach()); });
}

tensors copies(const tensors& all) {
  tensors result;
  for (const auto& t : all) result.push_back(t.detach().clone());
  return result;
}

void set_rate(torch::optim::Optimizer& optimizer, double rate) {
  for (auto& group : optimizer.param_groups()) group.options().set_lr(rate);
}

void step_together(sharded_optimizer_base& optimizer) {
  run_task([&] { return optimizer.step_together(); });
}

state::value consolidated(const torch::optim::Optimizer& optimizer, const rank_group& group) {
  return run_task([&] { return distributed::consolidate(state::optimizer_state(optimizer), group); });
}

/// A run without ranks: the parameters after each iteration, and the state at the end.
struct reference {
  tensors parameters = odd_parameters();
  optimizer_ptr optimizer;
  std::vector<tensors> after;

  explicit reference(const optimizer_case& kind, int iterations = 0) : optimizer(kind.plain(parameters)) {
    for (int i = 0; i < iterations; ++i) {
      give_gradients(parameters, i);
      if (i == 3) set_rate(*optimizer, 0.02);
      optimizer->step();
      after.push_back(copies(parameters));
    }
  }
};

std::vector<state::value> leaves_of(const state::dict& state, const std::string& key) {
  std::vector<state::value> all;
  for (const auto& [number, one] : state.at("state").as<state::dict>())
    if (const auto* leaf = one.as<state::dict>().find(key)) all.push_back(*leaf);
  return all;
}

std::string what_of(const std::exception_ptr& failure) {
  REQUIRE(failure);
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& e) {
    return e.what();
  }
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

template <class F>
std::string state_error_of(F act) {
  try {
    act();
  } catch (const state_error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a sharded optimizer gives the bits of the plain one on every rank", "[distributed][sharded_optimizer]") {
  constexpr int iterations = 6;
  std::vector<std::unique_ptr<reference>> plain;
  for (const auto& kind : cases()) plain.push_back(std::make_unique<reference>(kind, iterations));
  const auto compare = [&](const optimizer_case& kind, const reference& expected, const rank_group& group) {
    const auto parameters = odd_parameters();
    const auto optimizer = kind.sharded(parameters, group);
    for (int i = 0; i < iterations; ++i) {
      give_gradients(parameters, i);
      if (i == 3) set_rate(*optimizer, 0.02);
      step_together(*optimizer);
      require(same_bits(parameters, expected.after[static_cast<std::size_t>(i)]), kind.name + ": other parameters");
    }
    const auto state = consolidated(*optimizer, group);
    const auto expected_state = state::optimizer_state(*expected.optimizer);
    require(state::equal(state, expected_state), kind.name + ": another state");
    require(state::digest_of(state) == state::digest_of(expected_state), kind.name + ": another digest");
  };
  for (const int world_size : {1, 2, 3, 4}) {
    CAPTURE(world_size);
    on_ranks(world_size, [&](const rank_group& group) {
      for (std::size_t i = 0; i < plain.size(); ++i) compare(cases()[i], *plain[i], group);
    });
  }
}

TEST_CASE("many large parameters travel in several messages", "[distributed][sharded_optimizer]") {
  // More than the 64 MiB that the messages of one round may take, with rows of very different lengths.
  const auto parameters_of_run = [] {
    tensors all{at::zeros({3, 1500000}), at::zeros({4000001}), at::zeros({5}), at::zeros({2000, 2500}),
                at::zeros({1, 1000000})};
    for (auto& t : all) t.set_requires_grad(true);
    return all;
  };
  const auto gradients = [](const tensors& all) {
    for (const auto& t : all)
      t.mutable_grad() = at::arange(t.numel(), at::kLong).remainder(1013).to(at::kFloat).view(t.sizes());
  };
  const auto plain = parameters_of_run();
  gradients(plain);
  SGD(plain, SGDOptions(0.1)).step();
  on_ranks(2, [&](const rank_group& group) {
    const auto parameters = parameters_of_run();
    sharded_optimizer<SGD> optimizer(parameters, SGDOptions(0.1), group);
    gradients(parameters);
    step_together(optimizer);
    require(same_bits(parameters, plain), "other parameters");
  });
}

TEST_CASE("elements are dealt out evenly, at whole rows", "[distributed][sharded_optimizer]") {
  const auto deal = [](const std::function<tensors()>& make, int world_size) {
    std::vector<std::int64_t> elements(static_cast<std::size_t>(world_size));
    on_ranks(world_size, [&](const rank_group& group) {
      const sharded_optimizer<Adam> optimizer(make(), AdamOptions(), group);
      elements[static_cast<std::size_t>(group.rank())] = optimizer.own_elements();
    });
    return elements;
  };
  const auto with_grad = [](const tensors& all) {
    for (const auto& t : all) t.set_requires_grad(true);
    return all;
  };

  SECTION("parameters of 10 elements a row") {
    const auto make = [&] {
      return with_grad({at::zeros({100, 10}), at::zeros({33, 10}), at::zeros({}), at::zeros({7, 10})});
    };
    for (const int world_size : {1, 2, 3, 4}) {
      const auto elements = deal(make, world_size);
      std::int64_t sum = 0;
      for (const auto n : elements) {
        sum += n;
        CHECK(std::abs(n - 1401 / world_size) <= 10);
      }
      CHECK(sum == 1401);
    }
  }
  SECTION("a frozen embedding counts as nothing") {
    const auto make = [&] {
      auto all = with_grad({at::zeros({1000, 100}), at::zeros({10, 3}), at::zeros({10, 3})});
      all[0].set_requires_grad(false);
      return all;
    };
    auto elements = deal(make, 2);
    for (auto& n : elements) n %= 100000;
    CHECK(elements == std::vector<std::int64_t>{30, 30});
  }
  SECTION("fewer rows than ranks") {
    const auto elements = deal([&] { return with_grad({at::zeros({1, 5})}); }, 4);
    CHECK(std::ranges::count(elements, 5) == 1);
    CHECK(std::ranges::count(elements, 0) == 3);
  }
}

TEST_CASE("each rank remembers its own rows only, and where they belong", "[distributed][sharded_optimizer]") {
  const auto kind = case_named("Adam with amsgrad");
  const reference plain(kind, 2);
  const auto whole = state::optimizer_state(*plain.optimizer);
  std::vector<std::int64_t> remembered(3);
  on_ranks(3, [&](const rank_group& group) {
    const auto parameters = odd_parameters();
    const auto optimizer = kind.sharded(parameters, group);
    for (int i = 0; i < 2; ++i) {
      give_gradients(parameters, i);
      step_together(*optimizer);
    }
    const auto state = state::optimizer_state(*optimizer);
    require(state::equal(state.at("param_groups"), whole.at("param_groups")), "other groups");
    for (const auto& [number, one] : whole.at("state").as<state::dict>()) {
      const auto& mine = state.at("state").at(number);
      require(state::equal(mine.at("step"), one.at("step")), "another step");
      for (const char* key : {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}) {
        const auto part = sharded_tensor::from(mine.at(key));
        const auto all = one.get<at::Tensor>(key);
        require(part.sizes == all.sizes().vec(), "other sizes");
        for (const auto& piece : part.pieces) {
          const auto& t = piece.tensor;
          require(t.numel() > 0, "an empty part");
          require(state::equal(t, t.dim() == 0 ? all : all.narrow(0, piece.offsets[0], t.size(0))), "other rows");
          require(t.storage().nbytes() == t.nbytes(), "the memory of more rows");
          remembered[static_cast<std::size_t>(group.rank())] += t.numel();
        }
      }
    }
  });
  std::int64_t all = 0;
  for (const char* key : {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"})
    for (const auto& leaf : leaves_of(whole, key)) all += leaf.as<at::Tensor>().numel();
  CHECK(remembered[0] + remembered[1] + remembered[2] == all);
  for (const auto n : remembered) CHECK(std::abs(n - all / 3) <= 3 * 301);
}

TEST_CASE("the state aliases the optimizer's memory", "[distributed][sharded_optimizer]") {
  on_ranks(2, [](const rank_group& group) {
    tensors parameters{at::zeros({4, 2}).set_requires_grad(true)};
    sharded_optimizer<SGD> optimizer(parameters, SGDOptions(0.1).momentum(0.9), group);
    parameters[0].mutable_grad() = at::ones({4, 2});
    step_together(optimizer);
    const auto before = sharded_tensor::from(optimizer.state_dict().at("state").at(0).at("momentum_buffer"));
    step_together(optimizer);
    require(before.pieces.size() == 1, "two rows on each rank");
    require(before.pieces[0].offsets == std::vector<std::int64_t>{group.rank() * 2, 0}, "another place");
    require(state::equal(before.pieces[0].tensor, at::full({2, 2}, 1.9F)), "a copy");
  });
}

TEST_CASE("before the first step, the optimizer tells which rows it wants", "[distributed][sharded_optimizer]") {
  on_ranks(3, [&](const rank_group& group) {
    for (const auto& kind : cases()) {
      const auto parameters = odd_parameters();
      const auto optimizer = kind.sharded(parameters, group);
      require(state::optimizer_state(*optimizer).at("state").as<state::dict>().empty(), "a state without a step");
      const auto wanted = optimizer->wanted();
      require(same_bits(parameters, odd_parameters()), "wanted() has stepped");
      give_gradients(parameters, 1);
      step_together(*optimizer);
      const auto present = optimizer->state_dict();
      for (const auto& [number, one] : present.at("state").as<state::dict>())
        for (const auto& [key, leaf] : one.as<state::dict>()) {
          const auto& wish = wanted.at("state").at(number).at(key);
          require(sharded_tensor::is(leaf) == sharded_tensor::is(wish), "another kind");
          if (!sharded_tensor::is(leaf)) continue;
          const auto here = sharded_tensor::from(leaf);
          const auto there = sharded_tensor::from(wish);
          require(here.sizes == there.sizes && here.dtype == there.dtype, "another tensor");
          require(here.pieces.size() == there.pieces.size(), "other parts");
          for (std::size_t i = 0; i < here.pieces.size(); ++i) {
            require(here.pieces[i].offsets == there.pieces[i].offsets, "another place");
            require(here.pieces[i].tensor.sizes() == there.pieces[i].tensor.sizes(), "other rows");
            require(there.pieces[i].tensor.is_meta(), "memory for a wish");
          }
        }
      require(state::equal(present, optimizer->state_dict()), "wanted() has changed the state");
      const auto later = optimizer->wanted();
      for (const auto& [number, one] : present.at("state").as<state::dict>())
        require(state::equal(later.at("state").at(number), one), "what is there is not what is wanted");
    }
  });
}

TEST_CASE("a state goes from any number of ranks to any other", "[distributed][sharded_optimizer]") {
  for (const char* name : {"SGD with Nesterov momentum", "AdamW with amsgrad"}) {
    const auto kind = case_named(name);
    const reference plain(kind, 6);
    reference half(kind, 3);
    const auto state = state::clone(state::optimizer_state(*half.optimizer));
    const auto parameters_then = copies(half.parameters);
    // What each rank of a group had, which loaders may put together in any way.
    std::vector<state::value> of_ranks(3);
    on_ranks(3, [&](const rank_group& group) {
      const auto optimizer = kind.sharded(odd_parameters(), group);
      state::load_optimizer_state(*optimizer, state);
      of_ranks[static_cast<std::size_t>(group.rank())] = state::clone(optimizer->state_dict());
      require(state::equal(consolidated(*optimizer, group), state), "another state after loading");
    });
    auto in_pieces = of_ranks[0];
    for (auto& [number, one] : in_pieces.as<state::dict>()["state"].as<state::dict>())
      for (auto& [key, leaf] : one.as<state::dict>()) {
        if (!sharded_tensor::is(leaf)) continue;
        auto all = sharded_tensor::from(leaf);
        for (std::size_t rank = 1; rank < 3; ++rank)
          for (auto& piece : sharded_tensor::from(of_ranks[rank].at("state").at(number).at(key)).pieces)
            all.pieces.push_back(std::move(piece));
        leaf = all.to_value();
      }

    const auto goes_on = [&](torch::optim::Optimizer& optimizer, const tensors& parameters, const auto& step) {
      for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].detach().copy_(parameters_then[i]);
      for (int i = 3; i < 6; ++i) {
        give_gradients(parameters, i);
        if (i == 3) set_rate(optimizer, 0.02);
        step();
      }
      require(same_bits(parameters, plain.parameters), "other parameters");
    };
    for (const auto& from : {state, in_pieces}) {
      for (const int world_size : {1, 2, 4}) {
        CAPTURE(name, world_size);
        on_ranks(world_size, [&](const rank_group& group) {
          const auto parameters = odd_parameters();
          const auto optimizer = kind.sharded(parameters, group);
          give_gradients(parameters, 9);  // what was there must be replaced
          step_together(*optimizer);
          state::load_optimizer_state(*optimizer, from);
          goes_on(*optimizer, parameters, [&] { step_together(*optimizer); });
          require(state::equal(consolidated(*optimizer, group), state::optimizer_state(*plain.optimizer)),
                  "another state");
        });
      }
      CAPTURE(name, "plain");
      reference again(kind);
      state::load_optimizer_state(*again.optimizer, from);
      goes_on(*again.optimizer, again.parameters, [&] { again.optimizer->step(); });
      CHECK(state::equal(state::optimizer_state(*again.optimizer), state::optimizer_state(*plain.optimizer)));
    }
  }
}

TEST_CASE("the options of the groups come with the state, also where they were looked up before",
          "[distributed][sharded_optimizer]") {
  on_ranks(2, [](const rank_group& group) {
    tensors parameters{at::zeros({4, 2}).set_requires_grad(true)};
    sharded_optimizer<Adam> optimizer(parameters, AdamOptions(0.1), group);
    auto& options = dynamic_cast<AdamOptions&>(optimizer.param_groups()[0].options());
    options.lr(0.5);
    const auto saved = optimizer.state_dict();
    require(saved.at("param_groups").as<state::list>()[0].get<double>("lr") == 0.5, "the schedule's rate is not saved");
    options.lr(0.25).eps(1e-3);
    state::load_optimizer_state(optimizer, saved);
    require(options.lr() == 0.5 && options.eps() == 1e-8, "the groups have other options");
  });
}

TEST_CASE("learning rate schedules work on a sharded optimizer", "[distributed][sharded_optimizer]") {
  const auto run = [](torch::optim::Optimizer& optimizer, at::Tensor parameter, const std::function<void()>& step) {
    torch::optim::StepLR schedule(optimizer, 1, 0.5);
    for (int i = 0; i < 4; ++i) {
      parameter.mutable_grad() = at::ones_like(parameter);
      step();
      schedule.step();
    }
  };
  auto expected = at::zeros({5, 3}).set_requires_grad(true);
  SGD plain({expected}, SGDOptions(0.1));
  run(plain, expected, [&] { plain.step(); });
  on_ranks(2, [&](const rank_group& group) {
    auto parameter = at::zeros({5, 3}).set_requires_grad(true);
    sharded_optimizer<SGD> optimizer({parameter}, SGDOptions(0.1), group);
    run(optimizer, parameter, [&] { step_together(optimizer); });
    require(same_bits({parameter}, {expected}), "other parameters");
  });
}

TEST_CASE("a closure is called once, with gradients", "[distributed][sharded_optimizer]") {
  auto parameter = at::ones({3}).set_requires_grad(true);
  sharded_optimizer<SGD> optimizer({parameter}, SGDOptions(0.1), rank_group());
  int calls = 0;
  const torch::NoGradGuard outside;
  const auto loss = optimizer.step([&] {
    ++calls;
    auto sum = parameter.sum();
    sum.backward();
    return sum;
  });
  CHECK(calls == 1);
  CHECK(loss.item<float>() == 3.0F);
  CHECK(at::equal(parameter.detach(), at::full({3}, 0.9F)));
}

TEST_CASE("writing into parameters is seen by autograd, and gradients are not kept",
          "[distributed][sharded_optimizer]") {
  on_ranks(3, [](const rank_group& group) {
    tensors parameters{at::ones({7, 3}).set_requires_grad(true), at::ones({}).set_requires_grad(true)};
    sharded_optimizer<SGD> optimizer(parameters, SGDOptions(0.1), group);
    for (auto& p : parameters) p.mutable_grad() = at::ones_like(p);
    const auto loss = (parameters[0] * parameters[0]).sum() * parameters[1];
    const std::vector<std::int64_t> before{parameters[0]._version(), parameters[1]._version()};
    const auto users = parameters[0].grad().storage().use_count();
    step_together(optimizer);
    require(parameters[0]._version() > before[0] && parameters[1]._version() > before[1], "the version did not move");
    bool noticed = false;
    try {
      loss.backward();
    } catch (const c10::Error&) {
      noticed = true;
    }
    require(noticed, "backward through parameters that have changed");
    require(parameters[0].grad().storage().use_count() == users, "the optimizer keeps a gradient");
  });
}

TEST_CASE("a step before the last one was gathered is an error", "[distributed][sharded_optimizer]") {
  on_ranks(2, [](const rank_group& group) {
    tensors parameters{at::zeros({4}).set_requires_grad(true)};
    sharded_optimizer<SGD> optimizer(parameters, SGDOptions(0.1), group);
    run_task([&] { return optimizer.gather(); });  // nothing to gather
    parameters[0].mutable_grad() = at::ones({4});
    optimizer.step();
    std::string what;
    try {
      optimizer.step();
    } catch (const error& e) {
      what = e.what();
    }
    require(contains(what, "gather()"), "no error, or one that does not tell: " + what);
    run_task([&] { return optimizer.gather(); });
    optimizer.step();
    run_task([&] { return optimizer.gather(); });
    require(at::equal(parameters[0].detach(), at::full({4}, -0.2F)), "the step that failed has changed something");
  });
}

TEST_CASE("ranks that do different things are told so, all of them", "[distributed][sharded_optimizer]") {
  SECTION("gradients for other parameters") {
    const auto failures = failures_on_ranks(3, [](const rank_group& group) {
      tensors parameters{at::zeros({4}).set_requires_grad(true), at::zeros({4}).set_requires_grad(true)};
      sharded_optimizer<SGD> optimizer(parameters, SGDOptions(0.1), group);
      parameters[group.rank() == 2 ? 1 : 0].mutable_grad() = at::ones({4});
      step_together(optimizer);
    });
    for (const auto& failure : failures) CHECK(contains(what_of(failure), "rank 2 has stepped on other parameters"));
  }
  SECTION("other parameters") {
    const auto failures = failures_on_ranks(2, [](const rank_group& group) {
      tensors parameters{at::zeros({4}).set_requires_grad(true), at::zeros({5 + group.rank()}).set_requires_grad(true)};
      sharded_optimizer<SGD> optimizer(parameters, SGDOptions(0.1), group);
      for (auto& p : parameters) p.mutable_grad() = at::ones_like(p);
      step_together(optimizer);
    });
    for (const auto& failure : failures) {
      CHECK(contains(what_of(failure), "parameter 1: Float [6]"));
      CHECK(contains(what_of(failure), "parameter 1: Float [5]"));
    }
  }
  SECTION("another kind of optimizer") {
    const auto failures = failures_on_ranks(2, [](const rank_group& group) {
      tensors parameters{at::zeros({4}).set_requires_grad(true)};
      parameters[0].mutable_grad() = at::ones({4});
      std::unique_ptr<sharded_optimizer_base> optimizer;
      if (group.rank() == 0)
        optimizer = std::make_unique<sharded_optimizer<Adam>>(parameters, AdamOptions(0.1), group);
      else
        optimizer = std::make_unique<sharded_optimizer<AdamW>>(parameters, AdamWOptions(0.1), group);
      step_together(*optimizer);
    });
    for (const auto& failure : failures) CHECK(contains(what_of(failure), "AdamW"));
  }
}

TEST_CASE("what a sharded optimizer cannot do is an error at once", "[distributed][sharded_optimizer]") {
  auto parameter = at::zeros({4, 2}).set_requires_grad(true);
  const auto make = [&](const tensors& all) { sharded_optimizer<SGD>(all, SGDOptions(0.1), rank_group()); };
  CHECK_THROWS_AS(make({parameter, parameter}), option_error);
  CHECK_THROWS_AS(make({parameter, at::Tensor()}), option_error);
  CHECK_THROWS_AS(sharded_optimizer<SGD>(tensors{parameter}, SGDOptions(-0.1), rank_group()), c10::Error);

  sharded_optimizer<SGD> optimizer({parameter}, SGDOptions(0.1), rank_group());
  parameter.mutable_grad() = at::zeros({4, 2}).to_sparse();
  CHECK_THROWS_AS(optimizer.step(), option_error);
  parameter.mutable_grad() = at::ones({4, 2});
  optimizer.step();

  torch::serialize::OutputArchive archive;
  CHECK_THROWS_AS(optimizer.save(archive), state_error);

  optimizer.add_param_group(OptimizerParamGroup(tensors{at::zeros({2}).set_requires_grad(true)}));
  CHECK(contains(state_error_of([&] { optimizer.step(); }), "constructor"));
}

TEST_CASE("a model may be moved after its optimizer was made, and unfrozen", "[distributed][sharded_optimizer]") {
  const auto make = [] {
    torch::nn::Linear model(7, 5);
    model->weight.detach().copy_(noise({5, 7}, 1));
    model->bias.detach().copy_(noise({5}, 2));
    return model;
  };
  const auto train = [](torch::nn::Linear& model, const std::function<void()>& step) {
    model->bias.set_requires_grad(false);
    const auto iteration = [&](std::uint64_t seed) {
      for (auto& p : model->parameters())
        if (p.requires_grad()) p.mutable_grad() = noise(p.sizes(), seed, p.scalar_type());
      step();
    };
    iteration(1);
    model->to(at::kDouble);
    model->bias.set_requires_grad(true);
    iteration(2);
    iteration(3);
  };
  // Without ranks, LibTorch's own optimizer has no way to take the moments along: a group of one shows what is right.
  auto expected = make();
  sharded_optimizer<AdamW> alone(expected->parameters(), 0.1, rank_group());
  train(expected, [&] { alone.step(); });
  CHECK(alone.state_dict().at("state").at(0).get<at::Tensor>("exp_avg").scalar_type() == at::kDouble);
  on_ranks(2, [&](const rank_group& group) {
    auto model = make();
    sharded_optimizer<AdamW> optimizer(model->parameters(), AdamWOptions(0.1), group);
    train(model, [&] { step_together(optimizer); });
    require(same_bits(model->parameters(), expected->parameters()), "other parameters");
    require(state::equal(consolidated(optimizer, group), alone.state_dict()), "another state");
  });
}

TEST_CASE("a state that does not fit changes nothing", "[distributed][sharded_optimizer]") {
  on_ranks(2, [](const rank_group& group) {
    // Rank 0 has the first five rows of the first parameter, rank 1 the others and all of the second.
    const tensors parameters{at::zeros({8, 2}).set_requires_grad(true), at::zeros({4}).set_requires_grad(true)};
    sharded_optimizer<Adam> optimizer(parameters, AdamOptions(0.1), group);
    for (const auto& p : parameters) p.mutable_grad() = at::ones_like(p);
    step_together(optimizer);
    const auto good = state::clone(optimizer.state_dict());
    const auto whole = consolidated(optimizer, group);
    const auto refused = [&](state::value bad, const std::string& part) {
      bad.as<state::dict>()["param_groups"].as<state::list>()[0].as<state::dict>()["lr"] = 0.7;
      const auto what = state_error_of([&] { state::load_optimizer_state(optimizer, bad); });
      require(contains(what, part), "the error is: " + what);
      require(state::equal(optimizer.state_dict(), good), "something was changed");
    };
    const auto with = [](state::value v, int number, const char* key, state::value leaf) {
      v.as<state::dict>()["state"].as<state::dict>()[number].as<state::dict>()[key] = std::move(leaf);
      return v;
    };
    const auto sharded = [](std::vector<std::int64_t> sizes, std::vector<state::tensor_piece> pieces) {
      return sharded_tensor{std::move(sizes), at::kFloat, std::move(pieces)}.to_value();
    };

    const auto rows = [](std::int64_t begin, std::int64_t count, std::int64_t width = 2) {
      return state::tensor_piece{{begin, 0}, at::zeros({count, width})};
    };
    const auto second_moment = [&](std::vector<state::tensor_piece> pieces) {
      return with(whole, 0, "exp_avg_sq", sharded({8, 2}, std::move(pieces)));
    };

    refused(with(whole, 1, "exp_avg", at::zeros({5})), "state.1.exp_avg': expected shape [4], found [5]");
    refused(with(whole, 1, "exp_avg", 3), "state.1.exp_avg': expected Tensor, found int");
    refused(with(whole, 0, "exp_avg_sq", sharded({8, 3}, {})), "expected shape [8, 2], found [8, 3]");
    refused(second_moment({}), "hold 0 of the");
    refused(second_moment({group.rank() == 0 ? rows(5, 3) : rows(0, 5)}), "hold 0 of the");
    refused(second_moment({rows(0, 8, 1)}), group.rank() == 0 ? "hold 5 of the 10" : "hold 3 of the 6");
    refused(second_moment({rows(0, 8), rows(4, 2)}), "overlap");
    refused(second_moment({{{0, 0}, at::empty({8, 2}, at::kMeta)}}), "state.0.exp_avg_sq");
    auto one_state_more = whole;
    one_state_more.as<state::dict>()["state"].as<state::dict>()[9] = whole.at("state").at(0);
    refused(one_state_more, "state.9");
    auto one_group_more = whole;
    auto& listed = one_group_more.as<state::dict>()["param_groups"].as<state::list>();
    listed.push_back(listed[0]);
    refused(one_group_more, "param_groups");

    state::load_optimizer_state(optimizer, whole);
    require(state::equal(optimizer.state_dict(), good), "what fits was not loaded");
  });
}

TEST_CASE("a tolerant load leaves parameters alone whose place has changed, on all ranks alike",
          "[distributed][sharded_optimizer]") {
  on_ranks(3, [](const rank_group& group) {
    const auto make = [] {
      return tensors{at::zeros({9, 2}).set_requires_grad(true), at::zeros({6}).set_requires_grad(true)};
    };
    const auto run = [&](const tensors& parameters) {
      auto optimizer = std::make_unique<sharded_optimizer<Adam>>(parameters, AdamOptions(0.1), group);
      for (const auto& p : parameters) p.mutable_grad() = at::ones_like(p);
      step_together(*optimizer);
      return optimizer;
    };
    const auto whole = consolidated(*run(make()), group);
    const auto parameters = make();
    sharded_optimizer<Adam> fresh(parameters, AdamOptions(0.5), group);
    state::load_options options;
    options.on_mismatch = state::mismatch::ignore;
    state::loading act(options);
    act.displace(parameters[0]);
    state::prepare_optimizer_load(fresh, whole, act)();
    const auto loaded = consolidated(fresh, group);
    const auto& states = loaded.at("state").as<state::dict>();
    require(!states.contains(0), "the state of a parameter that was not loaded");
    require(states.contains(1) && state::equal(states.at(1), whole.at("state").at(1)), "another state");
    require(loaded.at("param_groups").as<state::list>()[0].get<double>("lr") == 0.1, "other options");
  });
}

TEST_CASE("a sharded optimizer tells what kind it is", "[distributed][sharded_optimizer]") {
  auto parameter = at::zeros({2}).set_requires_grad(true);
  const sharded_optimizer<AdamW> optimizer({parameter}, AdamWOptions(0.1), rank_group());
  const AdamW plain({parameter}, AdamWOptions(0.1));
  CHECK(state::optimizer_type_name(optimizer) == state::optimizer_type_name(plain));
  CHECK(state::optimizer_type_name(plain) == "torch::optim::AdamW");
}

TEST_CASE("a loop with ranks trains with a sharded optimizer as it does with a plain one",
          "[distributed][sharded_optimizer][loop]") {
  struct outcome {
    state::value model;
    state::value optimizer;
  };
  using maker = std::function<optimizer_ptr(tensors, const rank_group&)>;
  const maker plain = [](tensors all, const rank_group&) {
    return std::make_unique<AdamW>(std::move(all), AdamWOptions(0.05));
  };
  const maker sharded = [](tensors all, const rank_group& group) {
    return std::make_unique<sharded_optimizer<AdamW>>(std::move(all), AdamWOptions(0.05), group);
  };
  const auto train = [](const maker& make) {
    outcome result;
    const testing::temporary_directory folder;
    on_ranks(2, [&](const rank_group& group) {
      const auto x = noise({24, 5}, 1);
      const auto y = noise({24, 3}, 2);
      torch::nn::Linear model(5, 3);
      model->weight.detach().copy_(noise({3, 5}, 3));
      model->bias.detach().copy_(noise({3}, 4));
      const std::shared_ptr<torch::optim::Optimizer> optimizer = make(model->parameters(), group);
      loop_options options;
      options.max_iterations = 6;
      options.group = group;
      options.clip_grad_norm = 0.5;
      options.out = folder.path();
      options.handle_signals = false;
      auto batches = data::tensor_dataset(x, y) | data::distributed(group.rank(), 2) | data::batch(2);
      rondo::loop run(model, optimizer, batches, torch::nn::functional::mse_loss, std::move(options));
      run.run();
      const auto whole = consolidated(*optimizer, group);
      if (group.rank() == 0) {
        result.model = state::clone(state::module_state(*model));
        result.optimizer = state::clone(whole);
      }
    });
    return result;
  };
  const auto expected = train(plain);
  const auto found = train(sharded);
  CHECK(state::equal(found.model, expected.model));
  CHECK(state::equal(found.optimizer, expected.optimizer));
  CHECK(expected.optimizer.at("state").at(0).get<at::Tensor>("step").item<float>() == 6.0F);
}

TEST_CASE("a sharded optimizer goes on from Python's state, and Python from what was consolidated",
          "[distributed][sharded_optimizer][interop][python]") {
  const testing::temporary_directory folder;
  const auto script = R"(
import sys, torch
folder, act = sys.argv[1], sys.argv[2]
weight = torch.nn.Parameter(torch.linspace(-1, 1, 33, dtype=torch.float64).view(11, 3))
bias = torch.nn.Parameter(torch.linspace(0, 1, 7, dtype=torch.float64))
optimizer = torch.optim.AdamW([{'params': [weight], 'lr': 0.01}, {'params': [bias]}], lr=0.1, amsgrad=True)
def step(i):
    for p in (weight, bias): p.grad = torch.sin(torch.arange(p.numel(), dtype=torch.float64).view(p.shape) + i)
    optimizer.step()
if act == 'write':
    for i in range(3): step(i)
    saved = {'parameters': [weight.detach(), bias.detach()], 'optimizer': optimizer.state_dict()}
    torch.save(saved, f'{folder}/python')
else:
    saved = torch.load(f'{folder}/rondo')
    optimizer.load_state_dict(saved['optimizer'])
    for p, now in zip((weight, bias), saved['parameters']): p.data.copy_(now)
    for i in range(5, 8): step(i)
    once = [weight.detach().clone(), bias.detach().clone()]
    expected = torch.load(f'{folder}/expected')['parameters']
    for a, b in zip(once, expected): assert torch.allclose(a, b, rtol=1e-12, atol=1e-12), (a, b)
)";
  const auto python = [&](const std::string& act) {
    const auto result = testing::run_python(script, {folder.path().string(), act});
    INFO(result.output);
    REQUIRE(result.status == 0);
  };
  python("write");
  const auto saved = checkpoint::materialize_verified(checkpoint::reader::open(folder / "python"));
  const auto& before = saved.at("parameters").as<state::list>();
  on_ranks(3, [&](const rank_group& group) {
    tensors parameters;
    for (const auto& p : before) parameters.push_back(p.as<at::Tensor>().clone().set_requires_grad(true));
    groups two;
    two.emplace_back(tensors{parameters[0]});
    two.emplace_back(tensors{parameters[1]});
    sharded_optimizer<AdamW> optimizer(two, AdamWOptions(0.5), group);
    state::load_optimizer_state(optimizer, saved.at("optimizer"));
    const auto step = [&](int i) {
      for (auto& p : parameters) p.mutable_grad() = at::sin(at::arange(p.numel(), at::kDouble).view(p.sizes()) + i);
      step_together(optimizer);
    };
    const auto save = [&](const char* name) {
      const auto whole = consolidated(optimizer, group);
      if (group.rank() != 0) return;
      state::list now;
      for (const auto& p : parameters) now.emplace_back(p.detach().clone());
      testing::save(folder / name, state::dict{{"parameters", std::move(now)}, {"optimizer", whole}});
    };
    for (int i = 3; i < 5; ++i) step(i);
    save("rondo");
    for (int i = 5; i < 8; ++i) step(i);
    save("expected");
  });
  python("compare");
}

}  // namespace distributed_sharded_optimizer_test
