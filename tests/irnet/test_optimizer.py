import pytest
import torch
from torch import Tensor

from irnet import Recipe, optimizer
from irnet.architecture import Architecture
from irnet.network import Network, new_network, stack_states
from irnet.optimizer import Optimizer

# norms come last, and few units are above 0 for all rows: the gradient of a bias that a norm takes
# away again is nothing but noise
ARCHITECTURE = Architecture.parse("9ARx2-5ABRx1-1")
INPUTS, ROWS = 7, 64
RATES = [1e-2, 3e-2, 2e-2, 1e-2, 5e-3, 1e-3]
CHOICES: list[dict[str, object]] = [
    {},
    {"gradient_clip": None, "weight_decay": 0.3},
    {"gradient_clip": 0.05},
    {"optimizer": "adam", "weight_decay": 0.0},
    {"weight_averaging": "ema", "averaging_decay": 0.3},
    {"optimizer": "sgd", "weight_decay": 0.0},
    {"optimizer": "momentum", "weight_decay": 0.0},
    {"optimizer": "rmsprop", "weight_decay": 0.0},
]


def member(seed: int) -> Network:
    return new_network(ARCHITECTURE, INPUTS, 0.0, torch.Generator().manual_seed(seed))


def batch(seed: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * seed + step)
    x = torch.randn(ROWS, INPUTS, generator=generator)
    return x, 9 * seed * x[:, 0]


def loss_of(network: Network, x: Tensor, y: Tensor) -> Tensor:
    # squared, so that members have gradients of different lengths
    loss: Tensor = (network(x) - y).square().mean(dim=-1).sum()
    return loss


def train_with_torch(recipe: Recipe, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and their running average after steps of torch's own optimisers."""
    network = member(seed)
    weights = network.parameters()
    torchs: torch.optim.Optimizer = {
        "adamw": lambda: torch.optim.AdamW(weights, weight_decay=recipe.weight_decay),
        "adam": lambda: torch.optim.Adam(weights),
        "sgd": lambda: torch.optim.SGD(weights),
        "momentum": lambda: torch.optim.SGD(weights, momentum=0.9),
        "rmsprop": lambda: torch.optim.RMSprop(weights),
    }[recipe.optimizer]()
    average = {name: value.clone() for name, value in network.state_dict().items()}
    for step, rate in enumerate(RATES):
        torchs.param_groups[0]["lr"] = rate
        torchs.zero_grad()
        loss_of(network, *batch(seed, step)).backward()
        if recipe.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip)
        torchs.step()
        decay = min(recipe.averaging_decay, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            average[name] = (decay * average[name] + (1 - decay) * value).to(value.dtype)
    return network.state_dict(), average


@pytest.mark.parametrize("block", [16, 1 << 18])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("choices", CHOICES)
def test_steps_are_torchs(
    monkeypatch: pytest.MonkeyPatch, choices: dict[str, object], members: int, block: int
) -> None:
    monkeypatch.setattr(optimizer, "_CPU_BLOCK", block)
    recipe = Recipe(architecture=str(ARCHITECTURE)).with_changes(**choices)
    network = member(0)
    if members > 1:
        network = Network(ARCHITECTURE, INPUTS, members=members)
        network.load_state_dict(
            stack_states([member(seed).state_dict() for seed in range(members)])
        )
    ours = Optimizer(network, recipe, torch.float32)
    for step, rate in enumerate(RATES):
        batches = [batch(seed, step) for seed in range(members)]
        x, y = (torch.stack(parts) for parts in zip(*batches, strict=True))
        ours.step(loss_of(network, *((x, y) if members > 1 else (x[0], y[0]))), rate)
    found = zip(ours.states(), ours.states(averaged=True), strict=True)
    for seed, states in enumerate(found):
        expected = train_with_torch(recipe, seed)
        if recipe.weight_averaging == "none":
            expected = (expected[0], expected[0])
        for state, torchs in zip(states, expected, strict=True):
            assert state.keys() == torchs.keys()
            for name, value in state.items():
                if "num_batches" not in name:
                    torch.testing.assert_close(value, torchs[name], rtol=1e-4, atol=1e-4, msg=name)


def test_averaged_weights_are_lent_and_taken_back() -> None:
    recipe = Recipe(architecture=str(ARCHITECTURE), weight_averaging="ema")
    network = member(0)
    ours = Optimizer(network, recipe, torch.float32)
    for step, rate in enumerate(RATES):
        ours.step(loss_of(network, *batch(1, step)), rate)
    (newest,), (average,) = ours.states(), ours.states(averaged=True)
    with ours.averaged_weights():
        for name, value in network.state_dict().items():
            if "num_batches" not in name:
                assert torch.equal(value, average[name])
                assert not torch.equal(value, newest[name])
    for name, value in network.state_dict().items():
        assert torch.equal(value, newest[name])
