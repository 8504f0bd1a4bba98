#include <torch/optim.h>

#include <string>
#include <vector>

#include "rondo/state/digest.hpp"
#include "rondo/state/module.hpp"
#include "rondo/state/optimizer.hpp"
#include "support/catch.hpp"
#include "support/training.hpp"

namespace state_optimizer_test {

namespace {

using namespace rondo;
using testing::training;

const testing::optimizer_case& kind(const std::string& name) {
  for (const auto& c : testing::optimizer_cases())
    if (c.name == name) return c;
  throw std::invalid_argument(name);
}

std::vector<std::string> keys(const state::value& v) {
  std::vector<std::string> all;
  for (const auto& [key, unused] : v.as<state::dict>()) all.push_back(key.str());
  return all;
}

using names = std::vector<std::string>;

TEST_CASE("every optimizer goes on with the same bits after save and load", "[state][optimizer]") {
  for (const auto& c : testing::optimizer_cases()) {
    CAPTURE(c.name);
    training uninterrupted(c);
    uninterrupted.steps(6);

    training first(c);
    first.steps(3);
    const state::value model = state::clone(state::module_state(*first.model));
    const state::value optimizer = state::clone(state::optimizer_state(*first.optimizer));

    training second(c, /*seed=*/77);
    second.steps(1);  // what was there must be replaced
    state::load_module_state(*second.model, model);
    state::load_optimizer_state(*second.optimizer, optimizer);
    CHECK(state::equal(state::optimizer_state(*second.optimizer), optimizer));
    second.steps(3);
    CHECK(state::equal(state::module_state(*second.model), state::module_state(*uninterrupted.model)));
    CHECK(state::equal(state::optimizer_state(*second.optimizer), state::optimizer_state(*uninterrupted.optimizer)));
    CHECK_FALSE(state::equal(state::module_state(*second.model), model));
  }
}

TEST_CASE("a state taken before the first step resets the optimizer", "[state][optimizer]") {
  for (const auto& c : testing::optimizer_cases()) {
    CAPTURE(c.name);
    training t(c);
    const state::value model = state::clone(state::module_state(*t.model));
    const state::value optimizer = state::clone(state::optimizer_state(*t.optimizer));
    t.steps(2);
    const std::string after_two = state::digest_of(state::module_state(*t.model));
    state::load_module_state(*t.model, model);
    state::load_optimizer_state(*t.optimizer, optimizer);
    t.steps(2);
    CHECK(state::digest_of(state::module_state(*t.model)) == after_two);
  }
}

TEST_CASE("the layout is that of Python's optimizers", "[state][optimizer]") {
  const auto state_after_steps = [](const char* name) {
    training t(kind(name));
    t.steps(2);
    return state::clone(state::optimizer_state(*t.optimizer));
  };
  const auto group = [](const state::value& v) { return v.at("param_groups").as<state::list>().at(0); };

  const auto adam = state_after_steps("Adam with amsgrad");
  CHECK(keys(adam) == names{"state", "param_groups"});
  CHECK(keys(adam.at("state")) == names{"0", "1", "2", "3"});
  CHECK(keys(adam.at("state").at(3)) == names{"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"});
  CHECK(keys(group(adam)) == names{"lr", "betas", "eps", "weight_decay", "amsgrad", "params"});
  CHECK(state::equal(adam.at("state").at(0).at("step"), torch::tensor(2.0F)));
  CHECK(state::equal(group(adam).at("betas"), state::tuple{{0.8, 0.99}}));
  CHECK(state::equal(group(adam).at("params"), state::list{0, 1}));
  CHECK(state::equal(adam.at("param_groups").as<state::list>().at(1).at("params"), state::list{2, 3}));
  CHECK(state::equal(adam.at("param_groups").as<state::list>().at(1).at("lr"), 0.005));

  CHECK(keys(state_after_steps("Adam").at("state").at(0)) == names{"step", "exp_avg", "exp_avg_sq"});
  CHECK(keys(state_after_steps("AdamW").at("state").at(0)) == names{"step", "exp_avg", "exp_avg_sq"});

  const auto sgd = state_after_steps("SGD with Nesterov momentum");
  CHECK(keys(sgd.at("state").at(0)) == names{"momentum_buffer"});
  CHECK(keys(group(sgd)) == names{"lr", "momentum", "dampening", "weight_decay", "nesterov", "params"});
  CHECK(state_after_steps("SGD without momentum").at("state").as<state::dict>().empty());

  const auto rmsprop = state_after_steps("RMSprop, centered, with momentum");
  CHECK(keys(rmsprop.at("state").at(0)) == names{"step", "square_avg", "momentum_buffer", "grad_avg"});
  CHECK(keys(group(rmsprop)) == names{"lr", "momentum", "alpha", "eps", "centered", "weight_decay", "params"});
  CHECK(state::equal(rmsprop.at("state").at(0).at("step"), 2));

  const auto adagrad = state_after_steps("Adagrad with lr_decay");
  CHECK(keys(adagrad.at("state").at(0)) == names{"step", "sum"});
  CHECK(keys(group(adagrad)) == names{"lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value", "params"});

  const auto lbfgs = state_after_steps("LBFGS");
  CHECK(keys(lbfgs.at("state")) == names{"0"});
  CHECK(keys(lbfgs.at("state").at(0)) == names{"func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro", "H_diag",
                                               "prev_flat_grad", "prev_loss", "al"});
  CHECK(keys(group(lbfgs)) == names{"lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size",
                                    "line_search_fn", "params"});
  CHECK(group(lbfgs).at("line_search_fn").is_null());
}

TEST_CASE("settings of every group are restored", "[state][optimizer]") {
  training saved(kind("Adam with amsgrad"));
  saved.steps(1);
  auto& changed = static_cast<torch::optim::AdamOptions&>(saved.optimizer->param_groups()[1].options());
  changed.lr(0.125).eps(0.5);
  const state::value v = state::clone(state::optimizer_state(*saved.optimizer));
  training plain(kind("Adam"));
  const auto& options = static_cast<const torch::optim::AdamOptions&>(plain.optimizer->param_groups()[1].options());
  state::load_optimizer_state(*plain.optimizer, v);
  CHECK(options.lr() == 0.125);
  CHECK(options.eps() == 0.5);
  CHECK(options.amsgrad());
  CHECK(options.betas() == std::make_tuple(0.8, 0.99));
}

TEST_CASE("what Python may write differently is understood", "[state][optimizer]") {
  SECTION("numbers as tensors, betas as a list, steps as int or tensor, further settings") {
    training t(kind("Adam"));
    t.steps(2);
    state::value v = state::clone(state::optimizer_state(*t.optimizer));
    auto& group = v.as<state::dict>()["param_groups"].as<state::list>()[0].as<state::dict>();
    group["lr"] = torch::tensor(0.25);
    group["betas"] = state::list{0.5, torch::tensor(0.75)};
    group["foreach"] = nullptr;
    group["maximize"] = false;
    group["initial_lr"] = 1.0;
    v.as<state::dict>()["state"].as<state::dict>()[0].as<state::dict>()["step"] = 2;
    state::load_optimizer_state(*t.optimizer, v);
    const auto& options = static_cast<const torch::optim::AdamOptions&>(t.optimizer->param_groups()[0].options());
    CHECK(options.lr() == 0.25);
    CHECK(options.betas() == std::make_tuple(0.5, 0.75));
    CHECK(state::equal(state::optimizer_state(*t.optimizer).at("state").at(0).at("step"), torch::tensor(2.0F)));
  }
  SECTION("RMSprop's step as a tensor") {
    training t(kind("RMSprop, centered, with momentum"));
    t.steps(2);
    state::value v = state::clone(state::optimizer_state(*t.optimizer));
    v.as<state::dict>()["state"].as<state::dict>()[0].as<state::dict>()["step"] = torch::tensor(9.0F);
    state::load_optimizer_state(*t.optimizer, v);
    CHECK(state::equal(state::optimizer_state(*t.optimizer).at("state").at(0).at("step"), 9));
  }
  SECTION("None for a momentum buffer that is not there") {
    training t(kind("SGD without momentum"));
    state::dict v = state::clone(state::optimizer_state(*t.optimizer)).as<state::dict>();
    v["state"] = state::dict{{0, state::dict{{"momentum_buffer", nullptr}}}};
    state::load_optimizer_state(*t.optimizer, v);
    t.steps(2);
    training untouched(kind("SGD without momentum"));
    untouched.steps(2);
    CHECK(state::equal(state::module_state(*t.model), state::module_state(*untouched.model)));
  }
  SECTION("LBFGS after one iteration: plain numbers for t and H_diag, no al") {
    training t(kind("LBFGS"));
    t.steps(2);
    state::value v = state::clone(state::optimizer_state(*t.optimizer));
    auto& s = v.as<state::dict>()["state"].as<state::dict>()[0].as<state::dict>();
    s["H_diag"] = 1;
    s["t"] = torch::tensor(0.5F);
    s["al"] = nullptr;
    state::load_optimizer_state(*t.optimizer, v);
    const state::dict again = state::optimizer_state(*t.optimizer);
    CHECK(state::equal(again.at("state").at(0).at("H_diag"), torch::tensor(1.0F)));
    CHECK(state::equal(again.at("state").at(0).at("t"), 0.5));
    CHECK_FALSE(again.at("state").at(0).as<state::dict>().contains("al"));
  }
  SECTION("parameters under other numbers, as long as groups and state agree") {
    training t(kind("Adam"));
    t.steps(2);
    const state::value original = state::clone(state::optimizer_state(*t.optimizer));
    state::dict renumbered;
    for (const auto& [number, s] : original.at("state").as<state::dict>())
      renumbered.insert_or_assign(number.integer() + 100, s);
    state::value v = state::dict{{"state", renumbered}, {"param_groups", original.at("param_groups")}};
    auto& groups = v.as<state::dict>()["param_groups"].as<state::list>();
    groups[0].as<state::dict>()["params"] = state::list{100, 101};
    groups[1].as<state::dict>()["params"] = state::list{102, 103};
    training other(kind("Adam"));
    state::load_optimizer_state(*other.optimizer, v);
    CHECK(state::equal(state::optimizer_state(*other.optimizer), original));
  }
}

TEST_CASE("loaded tensors take the parameter's dtype and share no memory", "[state][optimizer]") {
  training t(kind("Adam"));
  t.steps(1);
  state::value v = state::clone(state::optimizer_state(*t.optimizer));
  auto& first = v.as<state::dict>()["state"].as<state::dict>()[0].as<state::dict>();
  const auto wide = first["exp_avg"].as<at::Tensor>().to(torch::kDouble);
  first["exp_avg"] = wide;
  const auto kept = first["exp_avg_sq"].as<at::Tensor>();
  state::load_optimizer_state(*t.optimizer, v);
  const state::dict loaded = state::optimizer_state(*t.optimizer);
  CHECK(loaded.at("state").at(0).at("exp_avg").as<at::Tensor>().scalar_type() == torch::kFloat);
  CHECK_FALSE(loaded.at("state").at(0).at("exp_avg_sq").as<at::Tensor>().is_alias_of(kept));
}

TEST_CASE("steps beyond float32 are kept exactly", "[state][optimizer]") {
  training t(kind("Adam"));
  t.steps(1);
  state::value v = state::clone(state::optimizer_state(*t.optimizer));
  const std::int64_t many = (std::int64_t{1} << 24) + 1;
  v.as<state::dict>()["state"].as<state::dict>()[0].as<state::dict>()["step"] = many;
  state::load_optimizer_state(*t.optimizer, v);
  const state::value again = state::clone(state::optimizer_state(*t.optimizer));
  CHECK(state::equal(again.at("state").at(0).at("step"), torch::tensor(static_cast<double>(many), torch::kDouble)));
  state::load_optimizer_state(*t.optimizer, again);
  CHECK(state::equal(state::optimizer_state(*t.optimizer), again));
}

struct refusal {
  std::string key;
  std::string text;
};

/// Loads `v`, which must be refused, and checks that nothing changed.
refusal refused(training& t, const state::value& v) {
  const std::string before = state::digest_of(state::optimizer_state(*t.optimizer));
  try {
    state::load_optimizer_state(*t.optimizer, v);
  } catch (const state_error& e) {
    CHECK(state::digest_of(state::optimizer_state(*t.optimizer)) == before);
    return {e.key(), e.what()};
  }
  return {"accepted", "accepted"};
}

TEST_CASE("a state that does not fit is refused as a whole", "[state][optimizer]") {
  training t(kind("Adam"));
  t.steps(2);
  state::value v = state::clone(state::optimizer_state(*t.optimizer));
  // Visible in the optimizer if anything were applied before the error is found.
  v.as<state::dict>()["param_groups"].as<state::list>()[0].as<state::dict>()["lr"] = 123.0;
  auto& root = v.as<state::dict>();
  auto& last = root["state"].as<state::dict>()[3].as<state::dict>();
  auto& last_group = root["param_groups"].as<state::list>()[1].as<state::dict>();

  SECTION("a wrong shape") {
    last["exp_avg_sq"] = torch::zeros({7});
    const refusal r = refused(t, v);
    CHECK(r.key == "state.3.exp_avg_sq");
    CHECK(r.text.find("expected shape [4], found [7]") != std::string::npos);
  }
  SECTION("a wrong type") {
    last["exp_avg"] = 1;
    CHECK(refused(t, v).key == "state.3.exp_avg");
  }
  SECTION("a sparse tensor") {
    last["exp_avg"] = torch::ones(4).to_sparse();
    CHECK(refused(t, v).key == "state.3.exp_avg");
  }
  SECTION("a fraction of a step, or fewer than none") {
    last["step"] = 1.5;
    CHECK(refused(t, v).key == "state.3.step");
    last["step"] = -1;
    CHECK(refused(t, v).key == "state.3.step");
  }
  SECTION("missing values") {
    root["state"].as<state::dict>()[3] = state::dict{{"step", 1}};
    CHECK(refused(t, v).key == "state.3.exp_avg");
  }
  SECTION("amsgrad without its maxima") {
    last_group["amsgrad"] = true;
    CHECK(refused(t, v).key == "state.2.max_exp_avg_sq");
  }
  SECTION("maximize") {
    last_group["maximize"] = true;
    CHECK(refused(t, v).key == "param_groups.1.maximize");
  }
  SECTION("decoupled weight decay in Adam") {
    last_group["decoupled_weight_decay"] = true;
    CHECK(refused(t, v).key == "param_groups.1.decoupled_weight_decay");
  }
  SECTION("other groups") {
    root["param_groups"].as<state::list>().pop_back();
    CHECK(refused(t, v).key == "param_groups");
  }
  SECTION("other parameters") {
    last_group["params"] = state::list{2};
    CHECK(refused(t, v).key == "param_groups.1.params");
    last_group["params"] = state::list{2, 2};
    CHECK(refused(t, v).key == "param_groups.1.params");
    last_group["params"] = state::list{2, "3"};
    CHECK(refused(t, v).key == "param_groups.1.params");
    last_group["params"] = state::list{2, 4};
    CHECK(refused(t, v).key == "state.3");
  }
  SECTION("state under a name") {
    root["state"].as<state::dict>()["global"] = 1;
    CHECK(refused(t, v).key == "state.global");
  }
  SECTION("wrong containers") {
    CHECK(refused(t, 1).text.find("expected dict") != std::string::npos);
    CHECK(refused(t, state::dict{{"state", state::dict{}}}).key == "param_groups");
    CHECK(refused(t, state::dict{{"state", state::list{}}, {"param_groups", state::list{}}}).key == "state");
    root["param_groups"].as<state::list>()[1] = 3;
    CHECK(refused(t, v).key == "param_groups.1");
  }
  SECTION("a betas of one") {
    last_group["betas"] = state::tuple{{0.9}};
    CHECK(refused(t, v).key == "param_groups.1.betas");
  }
}

TEST_CASE("the state of another kind of optimizer is refused by name", "[state][optimizer]") {
  for (const auto& from : testing::optimizer_cases())
    for (const auto& into : testing::optimizer_cases()) {
      const auto family = [](const std::string& name) { return name.substr(0, name.find_first_of(", ")); };
      const bool adams = family(from.name).starts_with("Adam") && family(into.name).starts_with("Adam");
      if (family(from.name) == family(into.name) || adams) continue;
      if (from.name.starts_with("LBFGS") != into.name.starts_with("LBFGS")) continue;  // they differ in groups already
      CAPTURE(from.name, into.name);
      training source(from);
      training target(into);
      const refusal r = refused(target, state::clone(state::optimizer_state(*source.optimizer)));
      CHECK(r.key == "param_groups.0");
      CHECK(r.text.find("state of " + family(from.name == "AdamW" ? "Adam" : from.name)) != std::string::npos);
      CHECK(r.text.find("the optimizer is " + family(into.name)) != std::string::npos);
    }
}

TEST_CASE("Adagrad needs the sum of every parameter", "[state][optimizer]") {
  training t(kind("Adagrad with lr_decay"));
  state::dict v = state::clone(state::optimizer_state(*t.optimizer)).as<state::dict>();
  v["state"] = state::dict{};
  CHECK(refused(t, v).key == "state.0");
}

TEST_CASE("LBFGS's history must be consistent", "[state][optimizer]") {
  training t(kind("LBFGS"));
  t.steps(3);
  state::value v = state::clone(state::optimizer_state(*t.optimizer));
  auto& s = v.as<state::dict>()["state"].as<state::dict>()[0].as<state::dict>();
  REQUIRE(s["ro"].as<state::list>().size() > 1);
  SECTION("of one length") {
    s["ro"].as<state::list>().pop_back();
    CHECK(refused(t, v).key == "state.0.ro");
  }
  SECTION("of one length, steps too") {
    s["old_stps"].as<state::list>().pop_back();
    CHECK(refused(t, v).key == "state.0.old_stps");
  }
  SECTION("no longer than the limit") {
    v.as<state::dict>()["param_groups"].as<state::list>()[0].as<state::dict>()["history_size"] = 1;
    CHECK(refused(t, v).key == "state.0.old_dirs");
  }
  SECTION("of the parameters' total size") {
    s["d"] = torch::zeros(3);
    CHECK(refused(t, v).key == "state.0.d");
  }
}

struct plain_descent : torch::optim::Optimizer {
  using Optimizer::Optimizer;
  at::Tensor step(LossClosure) override { return {}; }
};

TEST_CASE("an unknown optimizer type is named", "[state][optimizer]") {
  plain_descent own({torch::ones(1)}, std::make_unique<torch::optim::SGDOptions>(0.1));
  try {
    static_cast<void>(state::optimizer_state(own));
    FAIL("there is no layout for it");
  } catch (const state_error& e) {
    const std::string text = e.what();
    CHECK(text.find("plain_descent") != std::string::npos);
    CHECK(text.find("state_dict") != std::string::npos);
  }
  CHECK_THROWS_AS(state::load_optimizer_state(own, state::dict{}), state_error);
}

}  // namespace

}  // namespace state_optimizer_test
