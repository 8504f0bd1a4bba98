#include "rondo/state/load_options.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim.h>

#include <memory>
#include <range/v3/view/iota.hpp>
#include <string>
#include <utility>
#include <vector>

#include "rondo/event/early_stopping.hpp"
#include "rondo/loop/loop.hpp"
#include "rondo/state/digest.hpp"
#include "rondo/state/weights.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace state_load_options_test {

using namespace rondo;
using rondo::testing::captured_stderr;
using rondo::testing::contains;
using rondo::testing::message_of;
using state::mismatch;

namespace {

namespace nn = torch::nn;
using names = std::vector<std::string>;

/// Linear layers, each under its name; every layer is `width` wide but the last, which has `classes` outputs.
struct stack : nn::Module {
  explicit stack(const names& layers, std::int64_t classes = 3, std::int64_t width = 4) {
    for (std::size_t i = 0; i < layers.size(); ++i)
      all.push_back(register_module(layers[i], nn::Linear(width, i + 1 == layers.size() ? classes : width)));
  }
  torch::Tensor forward(torch::Tensor x) {
    for (auto& layer : all) x = layer(x);
    return x;
  }
  std::vector<nn::Linear> all;
};

std::shared_ptr<stack> make_stack(const names& layers, std::int64_t classes = 3) {
  return std::make_shared<stack>(layers, classes);
}

std::string digest(const nn::Module& module) { return state::digest_of(state::module_state(module)); }

bool same(const nn::Linear& a, const nn::Linear& b) {
  return torch::equal(a->weight, b->weight) && torch::equal(a->bias, b->bias);
}

state::value saved(const nn::Module& module) { return state::clone(state::module_state(module)); }

std::string refusal(nn::Module& module, const state::value& v, const state::load_options& options = {}) {
  return message_of<state_error>([&] { state::load_module_state(module, v, options); });
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

// ---- loops ----

template <class Optimizer = torch::optim::Adam>
std::shared_ptr<Optimizer> optimizer_of(const nn::Module& module) {
  return std::make_shared<Optimizer>(module.parameters(), 0.01);
}

/// Two iterations per epoch.
loop loop_over(std::shared_ptr<stack> model, std::shared_ptr<torch::optim::Optimizer> optimizer, loop_options options) {
  auto step = [model](context&, const std::int64_t& i) -> at::Tensor {
    torch::Tensor x = torch::full({5, 4}, 0.1 * static_cast<double>(i + 1));
    return model->forward(x).square().mean();
  };
  return loop(models(std::move(model)), optimizers(std::move(optimizer)),
              ranges::views::iota(std::int64_t{0}, std::int64_t{2}), std::move(step), std::move(options));
}

extension keep(state::value& into) {
  return make_extension(
             "keep", [&into](context& ctx) { ctx.when_due([&into, &ctx] { into = state::clone(ctx.state_dict()); }); })
      .at_priority(priority::snapshot);
}

extension take_back(const state::value& from, state::load_options options = {}) {
  return make_extension("take back", [&from, options = std::move(options)](context& ctx) {
    ctx.on<event::restoring>([&from, options, &ctx] { ctx.load_state_dict(from, options); });
  });
}

state::value trained(std::shared_ptr<stack> model, std::shared_ptr<torch::optim::Optimizer> optimizer,
                     loop_options options = {.max_iterations = 3}) {
  state::value result;
  auto l = loop_over(std::move(model), std::move(optimizer), std::move(options));
  l | keep(result);
  l.run();
  return result;
}

torch::Tensor first_moment(torch::optim::Optimizer& optimizer, const torch::Tensor& parameter) {
  const auto all = state::optimizer_state(optimizer);
  std::int64_t number = 0;
  for (const auto& p : optimizer.param_groups()[0].params()) {
    if (p.is_same(parameter)) break;
    ++number;
  }
  const auto* entry = all.at("state").as<state::dict>().find(number);
  return entry == nullptr ? torch::Tensor() : entry->get<at::Tensor>("exp_avg");
}

/// A stateful object that takes a state of its own kind only.
struct counter {
  std::int64_t count = 0;
  state::value state_dict() const { return state::dict{{"count", count}}; }
  void load_state_dict(const state::value& v) { count = v.get<std::int64_t>("count"); }
};

/// Counts iterations across resumes.
struct counting_extension {
  explicit counting_extension(counter& c) : c_(c) {}
  void attach(context& ctx) {
    ctx.on<event::iteration_completed>([this] { ++c_.count; });
  }
  state::value state_dict() const { return c_.state_dict(); }
  void load_state_dict(const state::value& v) { c_.load_state_dict(v); }
  counter& c_;
};

extension counting(const std::string& name, counter& c) {
  return extension(name, std::make_shared<counting_extension>(c));
}

}  // namespace

// ---- one module -----------------------------------------------------------------------------------------------------

TEST_CASE("long lists of differences are cut off, with the number of the rest", "[state][load_options]") {
  nn::Module many;
  for (int i = 0; i < 70; ++i) many.register_parameter("p" + std::to_string(i), torch::zeros(1));
  const auto what = refusal(many, state::dict{{"other", torch::zeros(2)}});
  CHECK(contains(what, "71 problems; nothing was changed"));
  CHECK(contains(what, "missing in the state (70):"));
  CHECK(contains(what, "p49: expected shape [1] of Float"));
  CHECK_FALSE(contains(what, "p50: "));
  CHECK(contains(what, "and 20 more"));
  CHECK(contains(what, "unexpected in the state (1):\n    other: found shape [2] of Float"));
  CHECK(contains(what, "rename"));
  CHECK(contains(what, "mismatch::warn"));
}

TEST_CASE("warn loads what fits and lists the rest in one warning, ignore says nothing", "[state][load_options]") {
  const stack old({"body", "gone", "head"}, 3);
  stack present({"body", "added", "head"}, 5);
  const auto body = present.all[0];
  const auto before_added = digest(*present.all[1]);
  const auto before_head = digest(*present.all[2]);
  const auto how = GENERATE(mismatch::warn, mismatch::ignore);

  std::string said;
  {
    const captured_stderr output;
    state::load_module_state(present, saved(old), {.on_mismatch = how});
    said = output.text();
  }
  CHECK(same(body, old.all[0]));
  CHECK(digest(*present.all[1]) == before_added);
  CHECK(digest(*present.all[2]) == before_head);
  if (how == mismatch::ignore) {
    CHECK(said.empty());
    return;
  }
  CHECK(count(said, "[rondo] warning") == 1);
  CHECK(contains(said, "2 of 6 tensors"));
  CHECK(contains(said, "added.weight: expected shape [4, 4] of Float"));
  CHECK(contains(said, "gone.bias: found shape [4] of Float"));
  CHECK(contains(said, "head.weight: expected shape [5, 4] of Float, found shape [3, 4] of Float"));
}

TEST_CASE("a state that is no dict fits nothing", "[state][load_options]") {
  stack module({"a"});
  const auto before = digest(module);
  CHECK(contains(refusal(module, 3), "expected dict, found int"));
  state::load_module_state(module, 3, {.on_mismatch = mismatch::ignore});
  CHECK(digest(module) == before);
}

TEST_CASE("stored names are mapped to present ones by whole names and by beginnings up to a dot",
          "[state][load_options]") {
  const stack old({"enc", "encoder", "head"});
  SECTION("a beginning") {
    stack present({"enc", "backbone", "head"});
    state::load_module_state(present, saved(old), {.rename = {{"encoder", "backbone"}}});
    for (std::size_t i = 0; i < 3; ++i) CHECK(same(present.all[i], old.all[i]));
  }
  SECTION("not in the middle of a word") {
    stack present({"backbone", "encoder", "head"});
    state::load_module_state(present, saved(old), {.rename = {{"enc.", "backbone."}}});
    for (std::size_t i = 0; i < 3; ++i) CHECK(same(present.all[i], old.all[i]));
  }
  SECTION("a whole name, and the first pair that fits, once") {
    stack present({"a", "b", "head"});
    state::load_module_state(present, saved(old),
                             {.rename = {{"enc.weight", "a.weight"}, {"enc", "a"}, {"encoder", "b"}}});
    for (std::size_t i = 0; i < 3; ++i) CHECK(same(present.all[i], old.all[i]));
  }
  SECTION("a prefix that goes or comes") {
    nn::Module outer;
    const auto inner = outer.register_module("net", make_stack({"enc", "encoder", "head"}));
    state::load_module_state(outer, saved(old), {.rename = {{"", "net"}}});
    CHECK(digest(*inner) == digest(old));
    stack again({"enc", "encoder", "head"});
    state::load_module_state(again, saved(outer), {.rename = {{"net", ""}}});
    CHECK(digest(again) == digest(old));
  }
}

TEST_CASE("names in a parallel wrapper are mapped with or without its prefix", "[state][load_options]") {
  const stack old({"encoder", "head"});
  state::dict wrapped;
  for (const auto& [name, tensor] : saved(old).as<state::dict>()) wrapped["module." + name.str()] = tensor;
  const std::pair<std::string, std::string> pair =
      GENERATE(std::pair<std::string, std::string>("encoder", "backbone"),
               std::pair<std::string, std::string>("module.encoder", "backbone"),
               std::pair<std::string, std::string>("module.encoder", "module.backbone"));
  stack present({"backbone", "head"});
  state::load_module_state(present, wrapped, {.rename = {pair}});
  CHECK(same(present.all[0], old.all[0]));
  CHECK(same(present.all[1], old.all[1]));

  nn::Module wrapper;
  const auto inside = wrapper.register_module("module", make_stack({"backbone", "head"}));
  state::load_module_state(wrapper, saved(old), {.rename = {{"encoder", pair.second}}});
  CHECK(digest(*inside) == digest(present));
}

TEST_CASE("a rename that fits nothing is told", "[state][load_options]") {
  const stack old({"a", "head"});
  stack present({"a", "head"});
  const auto before = digest(present);
  CHECK(contains(refusal(present, saved(old), {.rename = {{"b", "c"}}}), "rename (1):\n    {\"b\", \"c\"} fits no"));
  CHECK(digest(present) == before);
  const captured_stderr output;
  state::load_module_state(present, saved(old), {.on_mismatch = mismatch::warn, .rename = {{"b", "c"}}});
  CHECK(contains(output.text(), "fits no stored name"));
  CHECK(digest(present) == digest(old));
}

TEST_CASE("two stored names that become one are an error under every policy", "[state][load_options]") {
  const stack old({"a", "b", "head"});
  stack present({"a", "c", "head"});
  const auto before = digest(present);
  const auto how = GENERATE(mismatch::strict, mismatch::warn, mismatch::ignore);
  const auto what = refusal(present, saved(old), {.on_mismatch = how, .rename = {{"b", "a"}}});
  CHECK(contains(what, "a.weight: is meant by both 'a.weight' and 'b.weight'"));
  CHECK(digest(present) == before);
}

TEST_CASE("a handle passes the options on to modules; other types ignore them", "[state][load_options]") {
  const stack old({"a", "head"}, 3);
  stack present({"a", "head"}, 5);
  const state::stateful_ref module(present);
  CHECK_THROWS_AS(module.load(saved(old)), state_error);
  module.load(saved(old), {.on_mismatch = mismatch::ignore});
  CHECK(same(present.all[0], old.all[0]));
  CHECK(module.compares());

  counter c;
  const state::stateful_ref other(c);
  CHECK_FALSE(other.compares());
  other.load(state::dict{{"count", 7}}, {.rename = {{"count", "number"}}});
  CHECK(c.count == 7);
  CHECK_THROWS_AS(other.load(state::dict{{"number", 8}}, {.on_mismatch = mismatch::ignore}), state_error);
}

TEST_CASE("an optimizer alone takes the states of the parameters that fit", "[state][load_options][optimizer]") {
  const auto old = make_stack({"a", "head"}, 3);
  const auto old_optimizer = optimizer_of(*old);
  const auto all = trained(old, old_optimizer);
  const auto& stored = all.at("optimizers").at("main");

  const auto present = make_stack({"a", "head"}, 5);
  const auto optimizer = optimizer_of(*present);
  CHECK(contains(message_of<state_error>([&] { state::stateful_ref(*optimizer).load(stored); }),
                 "state.2.exp_avg: expected shape [5, 4], found [3, 4]"));
  const captured_stderr output;
  state::stateful_ref(*optimizer).load(stored, {.on_mismatch = mismatch::warn});
  CHECK(contains(output.text(), "state.3.exp_avg: expected shape [5], found [3]"));
  CHECK(torch::equal(first_moment(*optimizer, present->all[0]->weight),
                     first_moment(*old_optimizer, old->all[0]->weight)));
  CHECK_FALSE(first_moment(*optimizer, present->all[1]->weight).defined());
}

TEST_CASE("LBFGS and Adagrad keep what they have where the stored state does not fit",
          "[state][load_options][optimizer]") {
  const stack old({"a", "head"}, 3);
  stack present({"a", "head"}, 5);
  SECTION("Adagrad, whose constructor makes the state that it needs") {
    const auto optimizer = optimizer_of<torch::optim::Adagrad>(old);
    for (const auto& p : old.parameters()) p.mutable_grad() = torch::ones_like(p);
    optimizer->step();
    const auto into = optimizer_of<torch::optim::Adagrad>(present);
    state::stateful_ref(*into).load(state::clone(state::optimizer_state(*optimizer)),
                                    {.on_mismatch = mismatch::ignore});
    const auto result = state::optimizer_state(*into).at("state");
    CHECK(torch::equal(result.at(0).get<at::Tensor>("sum"), torch::ones({4, 4})));
    CHECK(torch::equal(result.at(2).get<at::Tensor>("sum"), torch::zeros({5, 4})));
    for (const auto& p : present.parameters()) p.mutable_grad() = torch::ones_like(p);
    into->step();
  }
  SECTION("LBFGS, whose state is one for all parameters") {
    const auto step = [](torch::optim::LBFGS& optimizer, stack& model) {
      optimizer.step([&] {
        optimizer.zero_grad();
        auto loss = model.forward(torch::ones({2, 4})).square().mean();
        loss.backward();
        return loss;
      });
    };
    stack source({"a", "head"}, 3);
    torch::optim::LBFGS optimizer(source.parameters(), torch::optim::LBFGSOptions(0.1).max_iter(2));
    step(optimizer, source);
    torch::optim::LBFGS into(present.parameters(), torch::optim::LBFGSOptions(0.1).max_iter(2));
    state::stateful_ref(into).load(state::clone(state::optimizer_state(optimizer)), {.on_mismatch = mismatch::ignore});
    CHECK(state::optimizer_state(into).at("state").as<state::dict>().empty());
    step(into, present);
  }
}

// ---- files ----------------------------------------------------------------------------------------------------------

TEST_CASE("a file that Python wrote with torch.save(model.state_dict()) loads in one line",
          "[state][load_options][python]") {
  const testing::temporary_directory dir;
  const auto file = (dir / "weights.pt").string();
  const auto made = testing::run_python(R"(
import sys, torch
torch.manual_seed(4)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 3)
net = Net()
with torch.no_grad():
    for i, p in enumerate(net.parameters()):
        p.fill_(i + 1)
torch.save(net.state_dict(), sys.argv[1])
torch.save({'epoch': 3, 'net': {'weights': torch.nn.DataParallel(net).state_dict()}}, sys.argv[1] + '.nested')
)",
                                        {file});
  REQUIRE(made.output == "");
  REQUIRE(made.status == 0);

  stack same_names({"encoder", "head"});
  state::load_weights(same_names, file);
  CHECK(torch::equal(same_names.all[0]->weight, torch::full({4, 4}, 1.0)));
  CHECK(torch::equal(same_names.all[1]->bias, torch::full({3}, 4.0)));

  stack renamed({"backbone", "classifier"}, 5);
  const auto before = digest(*renamed.all[1]);
  state::load_weights(renamed, file + ".nested", {.on_mismatch = mismatch::ignore, .rename = {{"encoder", "backbone"}}},
                      "net.weights");
  CHECK(torch::equal(renamed.all[0]->bias, torch::full({4}, 2.0)));
  CHECK(digest(*renamed.all[1]) == before);

  const auto what = message_of<state_error>([&] { state::load_weights(renamed, file); });
  CHECK(contains(what, "weights.pt' does not fit (8 problems"));
  CHECK(contains(what, "backbone.weight: expected shape [4, 4] of Float"));
  CHECK(contains(what, "encoder.weight: found shape [4, 4] of Float"));
  CHECK(contains(message_of<state_error>([&] { state::load_weights(renamed, file + ".nested", {}, "net.ema"); }),
                 "there are: weights"));
  CHECK_THROWS_AS(state::load_weights(renamed, file + ".absent"), io_error);
}

// ---- loops ----------------------------------------------------------------------------------------------------------

namespace {

/// Two models that are not trained; `e` is attached.
void run_two(std::shared_ptr<stack> generator, std::shared_ptr<stack> critic, extension e,
             const std::string& first_name = "generator") {
  auto step = [](context&, const std::int64_t&) {};
  loop l(models{{first_name, std::move(generator)}, {"critic", std::move(critic)}}, optimizers{},
         ranges::views::iota(std::int64_t{0}, std::int64_t{2}), step, {.max_epochs = 1});
  l | std::move(e);
  l.run();
}

/// Trains `model` for one more iteration from `from`; what was said on stderr.
std::string go_on(const std::shared_ptr<stack>& model, const std::shared_ptr<torch::optim::Optimizer>& optimizer,
                  const state::value& from, state::load_options options, std::int64_t expected_iteration = 3) {
  const captured_stderr output;
  auto l = loop_over(model, optimizer, {.max_iterations = expected_iteration});
  l | take_back(from, std::move(options));
  const auto result = l.run();
  CHECK(result.iteration == expected_iteration);
  return output.text();
}

}  // namespace

TEST_CASE("strict: one error lists every difference of all models, and nothing is changed", "[loop][load_options]") {
  state::value from;
  run_two(make_stack({"a", "head"}, 3), make_stack({"x", "y"}), keep(from));

  const auto generator = make_stack({"a", "head"}, 5);
  const auto critic = make_stack({"x", "z"});
  const auto before = digest(*generator) + digest(*critic);
  const auto what = message_of<state_error>([&] { run_two(generator, critic, take_back(from)); });
  CHECK(contains(what, "models.generator.head.weight: expected shape [5, 4] of Float, found shape [3, 4] of Float"));
  CHECK(contains(what, "models.critic.z.bias: expected shape [3] of Float"));
  CHECK(contains(what, "models.critic.y.bias: found shape [3] of Float"));
  CHECK(contains(what, "6 problems; nothing was changed"));
  CHECK(digest(*generator) + digest(*critic) == before);

  const captured_stderr output;
  run_two(generator, critic, take_back(from, {.on_mismatch = mismatch::warn}));
  CHECK(count(output.text(), "[rondo] warning") == 1);
  CHECK(contains(output.text(), "4 of 8 tensors"));
}

TEST_CASE("strict: the differences of the optimizer are in the list, too, and it is not changed",
          "[loop][load_options]") {
  const auto from = trained(make_stack({"a", "head"}, 3), optimizer_of(*make_stack({"b"})));
  const auto model = make_stack({"a", "head"}, 3);
  const auto optimizer = optimizer_of(*model);
  const auto before = digest(*model);
  auto l = loop_over(model, optimizer, {.max_iterations = 4});
  l | take_back(from);
  const auto what = message_of<state_error>([&] { l.run(); });
  CHECK(contains(what, "optimizers.main.param_groups.0.params: the state has 2 parameters in this group"));
  CHECK(digest(*model) == before);
}

TEST_CASE("warn: with another number of classes all but the head goes on where it was", "[loop][load_options]") {
  const auto old = make_stack({"a", "b", "head"}, 3);
  const auto old_optimizer = optimizer_of(*old);
  const auto from = trained(old, old_optimizer);

  const auto present = make_stack({"a", "b", "head"}, 5);
  const auto head = digest(*present->all[2]);
  const auto optimizer = optimizer_of(*present);
  const auto said = go_on(present, optimizer, from, {.on_mismatch = mismatch::warn});
  CHECK(count(said, "[rondo] warning") == 1);
  CHECK(contains(said, "models.main.head.weight: expected shape [5, 4]"));
  CHECK(contains(said, "optimizers.main.state: 2 of 6 parameters"));
  CHECK(same(present->all[1], old->all[1]));
  CHECK(digest(*present->all[2]) == head);
  for (const std::size_t i : {0, 1})
    CHECK(torch::equal(first_moment(*optimizer, present->all[i]->weight),
                       first_moment(*old_optimizer, old->all[i]->weight)));
  CHECK_FALSE(first_moment(*optimizer, present->all[2]->weight).defined());
  CHECK(go_on(make_stack({"a", "b", "head"}, 5), optimizer_of(*old), from, {.on_mismatch = mismatch::ignore}) == "");
}

TEST_CASE("warn: the state of an optimizer never goes to another parameter of the same shape", "[loop][load_options]") {
  const auto old = make_stack({"a", "b", "c", "head"});
  const auto from = trained(old, optimizer_of(*old));
  SECTION("a layer in the place of another") {
    const auto present = make_stack({"a", "c", "d", "head"});
    const auto optimizer = optimizer_of(*present);
    const auto said = go_on(present, optimizer, from, {.on_mismatch = mismatch::warn});
    CHECK(contains(said, "optimizers.main.state: 4 of 8 parameters"));
    CHECK(same(present->all[1], old->all[2]));
    CHECK(first_moment(*optimizer, present->all[0]->weight).defined());
    CHECK_FALSE(first_moment(*optimizer, present->all[1]->weight).defined());
    CHECK_FALSE(first_moment(*optimizer, present->all[2]->weight).defined());
    CHECK(first_moment(*optimizer, present->all[3]->weight).defined());
  }
  SECTION("a layer more: the optimizer starts afresh") {
    const auto present = make_stack({"a", "new", "b", "c", "head"});
    const auto optimizer = optimizer_of(*present);
    const auto said = go_on(present, optimizer, from, {.on_mismatch = mismatch::warn});
    CHECK(contains(
        said, "optimizers.main.param_groups.0.params: the state has 8 parameters in this group, the optimizer has 10"));
    CHECK(same(present->all[2], old->all[1]));
    CHECK(state::optimizer_state(*optimizer).at("state").as<state::dict>().empty());
  }
  SECTION("another kind of optimizer: it starts afresh") {
    const auto present = make_stack({"a", "b", "c", "head"});
    const auto optimizer = optimizer_of<torch::optim::AdamW>(*present);
    const auto said = go_on(present, optimizer, from, {.on_mismatch = mismatch::warn});
    CHECK(contains(said, "optimizers.main: is the state of a torch::optim::Adam, the loop has a torch::optim::AdamW"));
    CHECK(digest(*present) == digest(*old));
    CHECK(state::optimizer_state(*optimizer).at("state").as<state::dict>().empty());
  }
}

TEST_CASE("a renamed layer is resumed exactly, with its optimizer", "[loop][load_options][resume]") {
  const auto unbroken = make_stack({"a", "head"});
  const auto unbroken_optimizer = optimizer_of(*unbroken);
  const auto start = saved(*unbroken);
  static_cast<void>(trained(unbroken, unbroken_optimizer, {.max_iterations = 7}));

  const auto first = make_stack({"a", "head"});
  state::load_module_state(*first, start);
  const auto from = trained(first, optimizer_of(*first));
  const auto second = make_stack({"encoder", "classifier"});
  const auto optimizer = optimizer_of(*second);
  CHECK(go_on(second, optimizer, from, {.rename = {{"a", "encoder"}, {"models.main.head", "models.main.classifier"}}},
              7) == "");
  CHECK(same(second->all[0], unbroken->all[0]));
  CHECK(same(second->all[1], unbroken->all[1]));
  CHECK(state::equal(state::optimizer_state(*optimizer), state::optimizer_state(*unbroken_optimizer)));
}

TEST_CASE("a path renames inside one object only, and the objects themselves", "[loop][load_options]") {
  const auto generator = make_stack({"a", "head"});
  const auto critic = make_stack({"a", "head"});
  state::value from;
  run_two(generator, critic, keep(from));

  const auto now = make_stack({"b", "head"});
  const auto other = make_stack({"a", "head"});
  run_two(now, other,
          take_back(from, {.rename = {{"models.generator.a", "models.maker.b"}, {"models.generator", "models.maker"}}}),
          "maker");
  CHECK(same(now->all[0], generator->all[0]));
  CHECK(digest(*other) == digest(*critic));

  const auto error_of = [&](state::load_options options) {
    return message_of<state_error>([&] { run_two(now, other, take_back(from, std::move(options)), "maker"); });
  };
  CHECK(contains(error_of({.rename = {{"models.generator", "optimizers.maker"}}}), "leads out of 'models'"));
  CHECK(contains(error_of({.rename = {{"models.generator", "models.maker"}, {"models.critic.a", "models.maker.a"}}}),
                 "leads out of 'models.critic'"));
  const auto both = error_of({.on_mismatch = mismatch::ignore, .rename = {{"models.generator", "models.critic"}}});
  CHECK(contains(both, "models.critic: is meant by both 'generator' and 'critic'"));
  CHECK(contains(error_of({}), "models.maker: the loop has it"));
  CHECK(contains(error_of({}), "models.generator: the snapshot has it"));
}

TEST_CASE("ppe defect 33: adding, removing or renaming an extension is neither an error nor silent",
          "[loop][load_options][ppe]") {
  counter old_count;
  state::value from;
  {
    const auto model = make_stack({"a"});
    auto l = loop_over(model, optimizer_of(*model), {.max_iterations = 3});
    l | counting("old", old_count) | keep(from);
    l.run();
    REQUIRE(old_count.count == 3);
  }
  const auto resume = [&](const std::string& name, counter& c, state::load_options options) {
    const captured_stderr output;
    const auto model = make_stack({"a"});
    auto l = loop_over(model, optimizer_of(*model), {.max_iterations = 5});
    l | counting(name, c) | take_back(from, std::move(options));
    l.run();
    return output.text();
  };
  SECTION("kept: nothing to say") {
    counter c;
    CHECK(resume("old", c, {}) == "");
    CHECK(c.count == 5);
  }
  SECTION("removed and added: told, and training goes on") {
    const auto how = GENERATE(mismatch::strict, mismatch::warn);
    counter c;
    const auto said = resume("new", c, {.on_mismatch = how});
    CHECK(contains(said, how == mismatch::strict ? "extension 'new': the snapshot knows none of that name"
                                                 : "extensions.new: the snapshot knows none of that name"));
    CHECK(contains(said, how == mismatch::strict ? "extension 'old': the snapshot has a memory for it"
                                                 : "extensions.old: the snapshot has a memory for it"));
    CHECK(count(said, "[rondo] warning") == (how == mismatch::strict ? 2 : 1));
    CHECK(c.count == 2);
  }
  SECTION("silently on request only") {
    counter c;
    CHECK(resume("new", c, {.on_mismatch = mismatch::ignore}) == "");
    CHECK(c.count == 2);
  }
  SECTION("renamed, as the options say: it goes on") {
    counter c;
    CHECK(resume("new", c, {.rename = {{"extensions.old", "extensions.new"}}}) == "");
    CHECK(c.count == 5);
  }
  SECTION("with a memory of another kind") {
    from.as<state::dict>()["extensions"].as<state::dict>()["old"].as<state::dict>()["extension"] =
        state::dict{{"x", 1}};
    counter c;
    const auto strict = message_of<state_error>([&] { resume("old", c, {.strict_memory = true}); });
    CHECK(contains(strict, "extensions.old.extension"));
    CHECK(contains(strict, "'count': is missing"));
    const auto said = resume("old", c, {});
    CHECK(contains(said, "extension 'old' begins anew"));
    CHECK(contains(said, "'count': is missing"));
    CHECK(c.count == 2);
    c.count = 0;
    CHECK(contains(resume("old", c, {.on_mismatch = mismatch::warn}), "extensions.old.extension: state 'count': is missing"));
    CHECK(c.count == 2);
  }
}

TEST_CASE("remembered objects follow the policy, modules among them the whole of it", "[loop][load_options]") {
  const auto run = [](const state::value* from, state::value* into, state::load_options options,
                      const std::string& name, counter& c, stack& average) {
    const captured_stderr output;
    const auto model = make_stack({"a"});
    auto l = loop_over(model, optimizer_of(*model), {.max_iterations = from == nullptr ? 1 : 2});
    l.remember(name, c);
    l.remember("average", average);
    if (into != nullptr) l | keep(*into);
    if (from != nullptr) l | take_back(*from, std::move(options));
    l.run();
    return output.text();
  };
  counter c{5};
  stack old({"a", "b"}, 3);
  state::value from;
  run(nullptr, &from, {}, "counter", c, old);

  counter again;
  stack average({"a", "b"}, 3);
  CHECK(run(&from, nullptr, {}, "counter", again, average) == "");
  CHECK(again.count == 5);
  CHECK(digest(average) == digest(old));

  counter other{1};
  stack wider({"a", "b"}, 4);
  const auto before = digest(wider);
  const auto what = message_of<state_error>([&] { run(&from, nullptr, {}, "number", other, wider); });
  CHECK(contains(what, "state_objects.number: the loop has it, the snapshot does not"));
  CHECK(contains(what, "state_objects.counter: the snapshot has it, the loop does not"));
  CHECK(contains(what, "state_objects.average.b.weight: expected shape [4, 4] of Float, found shape [3, 4]"));
  CHECK(digest(wider) == before);
  const auto said = run(&from, nullptr, {.on_mismatch = mismatch::warn}, "number", other, wider);
  CHECK(contains(said, "state_objects.number: the loop has it"));
  CHECK(other.count == 1);
  CHECK(same(wider.all[0], old.all[0]));
  CHECK(run(&from, nullptr, {.rename = {{"state_objects.counter", "state_objects.number"}}}, "number", other,
            average) == "");
  CHECK(other.count == 5);

  auto damaged = state::clone(from);
  damaged.as<state::dict>()["state_objects"].as<state::dict>()["counter"] = state::list{};
  other.count = 1;
  CHECK(contains(run(&damaged, nullptr, {.on_mismatch = mismatch::warn}, "counter", other, average),
                 "state_objects.counter: expected dict, found list"));
  CHECK(other.count == 1);
}

TEST_CASE("gradients of parameters that do not fit are dropped and told", "[loop][load_options]") {
  const auto old = make_stack({"a", "head"}, 3);
  const auto from = trained(old, optimizer_of(*old), {.stop_trigger = rondo::at({iterations{3}}), .accumulate = 2});
  const auto load = [&](std::int64_t classes, std::int64_t accumulate, bool* found) {
    const captured_stderr output;
    const auto model = make_stack({"a", "head"}, classes);
    auto l = loop_over(model, optimizer_of(*model), {.max_iterations = 4, .accumulate = accumulate});
    l | take_back(from, {.on_mismatch = mismatch::warn}) | make_extension("look", [=](context& ctx) {
      ctx.on<event::training_started>([=] { *found = model->all[0]->weight.grad().defined(); });
    });
    l.run();
    return output.text();
  };
  bool found = false;
  CHECK(load(3, 2, &found) == "");
  CHECK(found);
  CHECK(contains(load(5, 2, &found), "rondo.gradients.2: has another shape"));
  CHECK_FALSE(found);
  CHECK(contains(load(3, 4, &found), "rondo.gradients: were gathered with accumulate = 2, now it is 4"));
  CHECK_FALSE(found);
}

TEST_CASE("the memory of another stop trigger is passed over, and refused where the options say so",
          "[loop][load_options]") {
  const auto old = make_stack({"a"});
  const auto from = trained(old, optimizer_of(*old));
  const auto load = [&](state::load_options options) {
    const captured_stderr output;
    const auto model = make_stack({"a"});
    auto l =
        loop_over(model, optimizer_of(*model),
                  {.max_iterations = 20, .stop_trigger = early_stopping({.monitor = "train/loss", .patience = 30})});
    l | take_back(from, std::move(options));
    l.run();
    return output.text();
  };
  CHECK(contains(message_of<state_error>([&] { load({.strict_memory = true}); }), "rondo.stop_trigger"));
  CHECK(contains(load({}), "the stop trigger ''train/loss' without improvement for 30 checks"));
  CHECK(contains(load({.on_mismatch = mismatch::warn}), "rondo.stop_trigger"));
}

TEST_CASE("a state without models is refused, and admitted where the options say so", "[loop][load_options]") {
  const auto old = make_stack({"a"});
  auto from = trained(old, optimizer_of(*old));
  state::dict rest;
  for (const auto& [key, part] : from.as<state::dict>())
    if (key.str() != "models") rest[key] = part;
  const auto model = make_stack({"a"});
  CHECK(contains(message_of<state_error>([&] { go_on(model, optimizer_of(*model), rest, {}); }), "'models'"));
  const auto said = go_on(model, optimizer_of(*model), rest, {.on_mismatch = mismatch::warn});
  CHECK(contains(said, "models.main: the loop has it"));
  CHECK(contains(said, "optimizers.main.state: 2 of 2 parameters"));
  CHECK_THROWS_AS(go_on(model, optimizer_of(*model), state::dict{}, {.on_mismatch = mismatch::ignore}), state_error);
}

}  // namespace state_load_options_test
