from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from irnet import Architecture, Network, count_parameters
from irnet.network import Batch, Dropout, new_network, stack_states, unstack_state


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("irnet-17", 5_812_577),
        ("irnet-24", 6_166_113),
        ("irnet-48", 11_783_697),
        ("plain-17", 4_834_689),
        ("plain-24", 5_187_697),
        ("plain-48", 10_805_281),
    ],
)
def test_parameter_counts_at_271_inputs(name: str, parameters: int) -> None:
    # by hand for plain: per layer (inputs + 1) outputs + 2 outputs of batch norm, output layer
    assert count_parameters(name, 271) == parameters
    if name.startswith("plain"):
        *hidden, (last, one) = Architecture.parse(name).main_path(271)
        assert parameters == sum((a + 1) * b + 2 * b for a, b in hidden) + last + one


@pytest.mark.parametrize("depth", [17, 24, 48])
def test_srnet_and_irnet_of_equal_depth_share_their_main_path(depth: int) -> None:
    def main_path(name: str) -> list[tuple[int, int]]:
        network = Network(Architecture.parse(name), 271)
        return [
            (module.in_features, module.out_features)
            for key, module in network.named_modules()
            if isinstance(module, torch.nn.Linear) and "projection" not in key
        ]

    with torch.device("meta"):
        paths = [main_path(f"{kind}-{depth}") for kind in ("irnet", "srnet", "plain")]
    assert paths[0] == paths[1] == paths[2]
    assert paths[0] == list(Architecture.parse(f"irnet-{depth}").main_path(271))


def test_brnet_has_the_parameters_of_its_published_code() -> None:
    # by hand: two branches of 86 -> 1024 (with projection) -> 1024, then 512x3, 256x3, 128x3, 64x2,
    # 32 with a projection at every change of width, and the output
    def dense(a: int, b: int) -> int:
        return a * b + b

    expected = 2 * (2 * dense(86, 1024) + dense(1024, 1024)) + dense(32, 1)
    for before, width, count in ((1024, 512, 3), (512, 256, 3), (256, 128, 3), (128, 64, 2)):
        expected += 2 * dense(before, width) + (count - 1) * dense(width, width)
    expected += 2 * dense(64, 32)
    assert count_parameters("brnet", 86) == expected == 4_548_385


def test_branches_are_added() -> None:
    architecture = Architecture.parse("6ARx2P3-4Ax1-1", "leaky_relu")
    network = new_network(architecture, 5, 0.0, generator())
    x = torch.randn(7, 5, generator=generator(1))
    branches = network.stages[0].branches
    assert len(branches) == 3
    together = sum(branch(x) for branch in branches)
    torch.testing.assert_close(network.stages[0](x), together)
    assert not torch.equal(branches[0](x), branches[1](x))


@pytest.mark.parametrize("members", [None, 2])
def test_outputs_of_a_classification(members: int | None) -> None:
    network = Network(Architecture.parse("6BAx1-1"), 5, members=members, outputs=3)
    if members is None:
        assert network.eval()(torch.zeros(4, 5)).shape == (4, 3)
        return
    state = new_network(Architecture.parse("6BAx1-1"), 5, 0.0, generator(), outputs=3).state_dict()
    network.load_state_dict(stack_states([state, state]))
    assert network.eval()(torch.zeros(2, 4, 5)).shape == (2, 4, 3)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", lambda z: np.maximum(z, 0)),
        ("tanh", np.tanh),
        ("sigmoid", lambda z: 1 / (1 + np.exp(-z))),
        ("leaky_relu", lambda z: np.where(z > 0, z, 0.3 * z)),
    ],
)
def test_activations(name: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
    network = new_network(Architecture.parse("6Ax1-1", name), 5, 0.0, generator())
    x = torch.randn(7, 5, generator=generator(1))
    layer = network.stages[0].layers[0]
    z = layer.linear(x).detach().numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), function(z), atol=1e-6)


def test_plain_networks_have_no_projections() -> None:
    with torch.device("meta"):
        names = [key for key, _ in Network(Architecture.parse("plain-17"), 271).named_parameters()]
        others = [key for key, _ in Network(Architecture.parse("srnet-17"), 271).named_parameters()]
    assert not any("projection" in key for key in names)
    # one per change of width: 271 -> 1024 -> 512 -> 256 -> 128 -> 64 -> 32
    assert sum(key.endswith("projection.weight") for key in others) == 6


def numpy_forward(network: Network, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The paper's equations, written without torch: F(x) + x, or F(x) + W x + b."""
    state = {key: value.double().numpy() for key, value in network.state_dict().items()}

    def linear(name: str, h: NDArray[np.float64]) -> NDArray[np.float64]:
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, h: NDArray[np.float64]) -> NDArray[np.float64]:
        centred = h - state[f"{name}.running_mean"]
        scaled = centred / np.sqrt(state[f"{name}.running_var"] + 1e-5)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def shortcut(name: str, h: NDArray[np.float64]) -> NDArray[np.float64]:
        return linear(f"{name}.projection", h) if f"{name}.projection.weight" in state else h

    for number, block in enumerate(network.architecture.blocks):
        before = x
        for layer in range(block.count):
            name = f"stages.{number}.layers.{layer}"
            h = linear(f"{name}.linear", x)
            if block.norm == "before":
                h = norm(f"{name}.norm", h)
            h = np.maximum(h, 0)
            if block.norm == "after":
                h = norm(f"{name}.norm", h)
            x = h + shortcut(name, x) if block.shortcut == "layer" else h
        if block.shortcut == "block":
            x = x + shortcut(f"stages.{number}", before)
    return linear("output", x)[:, 0]


@pytest.mark.parametrize(
    "text", ["9BARx3-5BARx2-1", "9BAx3R-9BAx2R-5BAx2R-1", "9BAx2-4Ax1-1", "9ABRx2-4ABx2R-1"]
)
def test_forward_equals_numpy(text: str) -> None:
    network = new_network(Architecture.parse(text), 7, 0.0, generator())
    x = torch.randn(64, 7, generator=generator(1))
    for _ in range(3):
        network(x * 2 + 1)  # moves the running statistics of batch norm away from 0 and 1
    network.eval()
    with torch.no_grad():
        found = network(x).numpy()
    np.testing.assert_allclose(found, numpy_forward(network, x.double().numpy()), atol=2e-5)


def test_weights_come_from_the_generator_alone() -> None:
    architecture = Architecture.parse("8BARx2-1")
    first = new_network(architecture, 3, 0.0, generator(5))
    torch.manual_seed(99)
    again = new_network(architecture, 3, 0.0, generator(5))
    other = new_network(architecture, 3, 0.0, generator(6))
    assert torch.equal(first.output.weight, again.output.weight)
    assert not torch.equal(first.output.weight, other.output.weight)
    assert first.output.weight.abs().max() <= 8**-0.5


@pytest.mark.parametrize("rows", [None, (9, 11, 10)])
@pytest.mark.parametrize(
    "text", ["9BARx3-5BARDx2-1", "9BAx3R-9BAx2R-5BAx2RD-1", "9BADx2-4Ax1-1", "9ABRx2-4ABx2R-1"]
)
def test_a_stack_computes_what_its_members_do(text: str, rows: tuple[int, ...] | None) -> None:
    architecture = Architecture.parse(text)
    members = [new_network(architecture, 7, 0.2, generator(seed)) for seed in range(3)]
    stack = Network(architecture, 7, 0.2, members=3)
    stack.load_state_dict(stack_states([member.state_dict() for member in members]))
    stack.double()
    stack.batch.generators = [generator(10 + seed) for seed in range(3)]
    stack.batch.rows = rows
    x = torch.randn(3, 11, 7, generator=generator(1), dtype=torch.float64)
    for _ in range(2):
        together = stack(x)
    lengths = rows or (11, 11, 11)
    torch.stack(
        [t[:n].square().sum() for t, n in zip(together, lengths, strict=True)]
    ).sum().backward()
    state = unstack_state(stack.state_dict())
    gradient = unstack_state({name: p.grad for name, p in stack.named_parameters()})
    for number, (member, length) in enumerate(zip(members, lengths, strict=True)):
        member.double()
        member.batch.generators = [generator(10 + number)]
        for _ in range(2):
            alone = member(x[number, :length])
        torch.testing.assert_close(together[number, :length], alone, rtol=1e-5, atol=1e-6)
        alone.square().sum().backward()
        for name, parameter in member.named_parameters():
            torch.testing.assert_close(
                gradient[number][name], parameter.grad, rtol=1e-9, atol=1e-10, msg=name
            )
        for name, value in member.state_dict().items():
            torch.testing.assert_close(state[number][name], value, rtol=1e-12, atol=1e-12)
    stack.eval()
    with torch.no_grad():
        for number, (found, member) in enumerate(zip(stack(x), members, strict=True)):
            torch.testing.assert_close(found, member.eval()(x[number]), rtol=1e-5, atol=1e-6)


def test_stacking_states_and_back() -> None:
    architecture = Architecture.parse("8BARx2-4BAx2R-1")
    states = [new_network(architecture, 3, 0.0, generator(seed)).state_dict() for seed in range(2)]
    for state, again in zip(states, unstack_state(stack_states(states)), strict=True):
        assert list(state) == list(again)
        for name, value in state.items():
            assert torch.equal(value, again[name])


def test_leading_layers_own_their_shortcuts() -> None:
    with torch.device("meta"):
        network = Network(Architecture.parse("8BAx2R-4BARx2-1"), 3)
    names = {module: name for name, module in network.named_modules()}
    first = ["stages.0.layers.0"]
    block = ["stages.0.layers.0", "stages.0.layers.1", "stages.0.projection"]
    for count, expected in ((0, []), (1, first), (2, block), (3, [*block, "stages.1.layers.0"])):
        assert [names[module] for module in network.leading_layers(count)] == expected


def test_dropout_keeps_the_mean_and_rests_in_evaluation() -> None:
    layer = Dropout(0.25, Batch([generator()]))
    x = torch.ones(200, 200)
    dropped = layer(x)
    assert abs(float((dropped == 0).double().mean()) - 0.25) < 0.01
    assert abs(float(dropped.mean()) - 1.0) < 0.02
    assert torch.equal(layer.eval()(x), x)
