"""Programs that are wrong as a newcomer's are, and what the compiler's first lines must say: a sentence that helps. And
some that are right, which must compile without a warning. See docs_test.py.
"""

import re
import subprocess

# As many lines may come before and with the sentence.
LINES = 10

BEGIN = """using namespace rondo;
namespace F = torch::nn::functional;
struct Net : torch::nn::Module {
  torch::Tensor forward(torch::Tensor x) { return layer(x); }
  torch::nn::Linear layer = register_module("layer", torch::nn::Linear(2, 2));
};
struct sample {
  explicit sample(torch::Tensor t) : x(t) {}
  torch::Tensor x;
};
void program() {
  Net net;
  torch::optim::SGD optimizer(net.parameters(), 0.1);
  const auto x = torch::rand({8, 2});
  auto batches = data::tensor_dataset(x, x) | data::batch(4);
  auto inputs = std::vector<torch::Tensor>{x};
"""

# What is written, and what the compiler must say; nothing: that it compiles.
PROGRAMS = [
    ("loop a(net, optimizer, batches, F::mse_loss, {.max_epochs = 1});\n"
     "loop b(net, optimizer, batches, torch::nn::MSELoss(), {.max_epochs = 1});\n"
     "loop c(net, optimizer, batches, [](auto& output, auto& target) { return F::mse_loss(output, target); }, "
     "{.max_epochs = 1});\n"
     "loop d(net, optimizer, inputs, [&](context&, auto& b) { return net.forward(b).sum(); }, {.max_epochs = 1});", ""),
    ("loop l(Net(), optimizer, batches, F::mse_loss, {.max_epochs = 1});", "a model that is given to a loop by value"),
    ("loop l(std::as_const(net), optimizer, batches, F::mse_loss, {.max_epochs = 1});",
     "a model that is given to a loop by value or as const"),
    ("loop l(net.parameters(), optimizer, batches, F::mse_loss, {.max_epochs = 1});",
     "the first argument of a loop is the model"),
    ("loop l(net, net.parameters(), batches, F::mse_loss, {.max_epochs = 1});",
     "the second argument of a loop is the optimizer"),
    ("loop l(net, optimizer, 64, F::mse_loss, {.max_epochs = 1});", "the third argument of a loop is a range of batches"),
    ("loop l(net, optimizer, inputs, F::mse_loss, {.max_epochs = 1});", "batches have members `data` and `target`"),
    ("loop l(net, optimizer, batches, [&](data::example& b) { return net.forward(b.data).sum(); }, {.max_epochs = 1});",
     "the fourth argument of a loop is a loss function"),
    ("loop l(net, optimizer, batches, [](const torch::Tensor& output) { return output.sum(); }, {.max_epochs = 1});",
     "the fourth argument of a loop is a loss function"),
    ("loop l(net, optimizer, batches, [](context&, data::example&) { return 1.0; }, {.max_epochs = 1});",
     "the fourth argument of a loop is a loss function"),
    ("std::vector<std::tuple<torch::Tensor, torch::Tensor, torch::Tensor>> triples{{x, x, x}};\n"
     "loop l(net, optimizer, triples, F::mse_loss, {.max_epochs = 1});", "the model has no forward() for what these"),
    ("loop l(models{{\"a\", net}}, optimizer, batches, F::mse_loss, {.max_epochs = 1});", "several models need a step"),
    ("std::vector<sample> samples{sample(x)};\n"
     "loop l(net, optimizer, samples, [](context&, sample& s) { return s.x.sum(); }, {.max_epochs = 1});",
     "which tensors of a batch are to be moved to the device"),
    ("loop l(net, optimizer, batches, F::mse_loss, {.epochs = 1});", "no matching function for call to"),
]


def complaint_about(program, expected, words, directory):
    """Nothing, if the compiler says what it must."""
    text = BEGIN + program + "\n}\n"
    done = subprocess.run([*words, "-fsyntax-only", "-fmax-errors=1", "-x", "c++", "-"],
                          input=text, text=True, cwd=directory, capture_output=True)
    if not expected:
        return None if done.returncode == 0 and not done.stderr else f"does not compile: {program}\n{done.stderr}"
    first = "\n".join(done.stderr.splitlines()[:LINES])
    if done.returncode != 0 and expected in first:
        return None
    return f"{program}\nexpected: {expected}\nfound:\n{done.stderr[:4000]}"
