"""Architectures: the reference implementation's strings, read into layers.

A network is written as blocks joined by ``-``; a block is ``<width><letters>x<count><letters>``:

* ``1024BARx4``: four times (fully connected to 1024, batch norm, activation), with a shortcut
  around every layer. That is an IRNet (Jha et al. 2019, section 3.3).
* ``1024BAx4R``: the same four layers with one shortcut around the whole block: an SRNet (3.2).
* ``1024BAx4``: no shortcut: a plain network (3.1).
* ``B`` is batch norm and ``A`` the activation (ReLU); ``AB`` puts batch norm after it. ``D`` among
  the first letters is dropout after every layer, after the count it is dropout after the block.
* ``1024ARx2P2``: two parallel copies of ``1024ARx2``, whose outputs are added (branches of BRNet,
  Gupta et al. 2023).
* The last block is a bare ``1``: the linear output of the regression.

A shortcut is the identity where widths match and a linear projection where they do not; it is
added after the activation. The three depths of the paper (Table 1) have names: ``irnet-17``,
``srnet-24``, ``plain-48`` and so on. The "FC1024" in the 256 row of its 48-layer IRNet is read as
the misprint that it is. ``brnet`` is the branched network of Gupta et al., "Improving deep learning
model performance under parametric constraints for materials informatics applications" (Scientific
Reports 13, 9128, 2023), with the layers of its published code.

Which function the activation is stands beside the string: the reference implementation chooses it
in its settings, for all layers at once.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from .errors import ArchitectureError, nearest

_DEPTHS: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((1024, 4), (512, 3), (256, 3), (128, 3), (64, 2), (32, 1)),
    24: ((1024, 4), (512, 4), (256, 4), (128, 4), (64, 3), (32, 2), (16, 2)),
    48: (
        *((width, 4) for width in (1024, 512, 256, 128, 64) for _ in range(2)),
        (32, 4),
        (16, 3),
    ),
}
_PATTERNS = {
    "plain": "{width}BAx{count}",
    "srnet": "{width}BAx{count}R",
    "irnet": "{width}BARx{count}",
}

ARCHITECTURES: dict[str, str] = {
    f"{kind}-{depth}": "-".join(
        [pattern.format(width=width, count=count) for width, count in blocks] + ["1"]
    )
    for kind, pattern in _PATTERNS.items()
    for depth, blocks in _DEPTHS.items()
}
"""Named architectures: those of the paper's Table 1, and BRNet."""
ARCHITECTURES["brnet"] = "1024ARx2P2-512ARx3-256ARx3-128ARx3-64ARx2-32ARx1-1"

ACTIVATIONS = ("relu", "tanh", "sigmoid", "leaky_relu")
"""What an ``A`` may stand for. The first three are those of the paper's search (section 4)."""

MOST_LAYERS = 1000
"""Hidden layers of a network; the paper's deepest has 47."""

MOST_WEIGHTS = 1_000_000_000
"""Of the hidden layers together, 4 GB in float32; the paper's largest network has 10 million."""

_DIGITS = 9
"""Longest width or count that is read as a number at all."""

_BLOCK = re.compile(
    r"(?P<width>\d+)(?P<letters>[A-Za-wyz]*)"
    r"(?:x(?P<count>\d+)(?P<after>[A-OQ-Za-z]*)(?:P(?P<branches>\d+))?)?"
)


@dataclass(frozen=True)
class Block:
    """Layers of one width.

    Attributes:
        width: Outputs of every layer of the block.
        count: Number of layers.
        norm: Where batch norm stands: "before" or "after" the activation, or "none".
        shortcut: "layer" (IRNet), "block" (SRNet) or "none" (plain).
        dropout: After every "layer", after the "block", or "none".
        branches: Parallel copies, each with weights of its own, whose outputs are added.
    """

    width: int
    count: int
    norm: str
    shortcut: str
    dropout: str
    branches: int = 1

    def __str__(self) -> str:
        """Return the block as it is written in an architecture string."""
        letters = {"before": "BA", "after": "AB", "none": "A"}[self.norm]
        letters += "R" * (self.shortcut == "layer") + "D" * (self.dropout == "layer")
        after = "R" * (self.shortcut == "block") + "D" * (self.dropout == "block")
        after += f"P{self.branches}" if self.branches > 1 else ""
        return f"{self.width}{letters}x{self.count}{after}"


@dataclass(frozen=True)
class Architecture:
    """A network without its weights: hidden blocks, then one linear output.

    Attributes:
        blocks: The hidden blocks in order.
        activation: One of `ACTIVATIONS`; the output layer has none.
    """

    blocks: tuple[Block, ...]
    activation: str = "relu"

    @classmethod
    def parse(cls, text: str, activation: str = "relu") -> Architecture:
        """Read a name of `ARCHITECTURES` or an architecture string.

        Args:
            text: For example ``"irnet-17"`` or ``"64BARx2-32BARx1-1"``.
            activation: One of `ACTIVATIONS`.

        Returns:
            The architecture; ``str()`` of it is its normalised string, without the activation.

        Raises:
            ArchitectureError: Says which block is wrong and why, or that there is no such
                activation.
        """
        if activation not in ACTIVATIONS:
            raise ArchitectureError(
                f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}"
                f"{nearest(activation, ACTIVATIONS)}"
            )
        given = text.strip()
        known = ARCHITECTURES.get(given.lower())
        if known is not None:
            given = known
        elif not given or not given[0].isdigit():
            raise ArchitectureError(
                f"unknown architecture {text!r}{nearest(given.lower(), ARCHITECTURES)} "
                f"(names: {', '.join(ARCHITECTURES)}; or a string such as 1024BARx4-512BARx3-1)"
            )
        *hidden, output = given.split("-")
        if output != "1":
            raise ArchitectureError(
                f"architecture {text!r} must end in -1, its linear output, but ends in {output!r}"
            )
        if not hidden:
            raise ArchitectureError(f"architecture {text!r} has no hidden layers before its output")
        blocks = tuple(_parse_block(part, i, text) for i, part in enumerate(hidden, start=1))
        inputs = (0, *(block.width for block in blocks))
        weights = sum(
            block.width * (before + block.width * (block.count - 1)) * block.branches
            for before, block in zip(inputs, blocks, strict=False)
        )
        layers = sum(block.count * block.branches for block in blocks)
        if weights > MOST_WEIGHTS or layers > MOST_LAYERS:
            raise ArchitectureError(
                f"architecture {text!r} has {layers:,} layers with {weights:,} weights; at most "
                f"{MOST_LAYERS:,} layers and {MOST_WEIGHTS:,} weights make sense here"
            )
        return cls(blocks, activation)

    @property
    def depth(self) -> int:
        """Number of fully connected layers on the way through, the output counted."""
        return 1 + sum(block.count for block in self.blocks)

    @property
    def has_dropout(self) -> bool:
        """Whether any block asks for dropout."""
        return any(block.dropout != "none" for block in self.blocks)

    def main_path(self, inputs: int) -> tuple[tuple[int, int], ...]:
        """Shapes (inputs, outputs) of the main path's linear layers, without projections.

        Args:
            inputs: Number of features.

        Returns:
            One pair per fully connected layer, the output layer last; of parallel branches those
            of one.
        """
        widths = [inputs] + [b.width for b in self.blocks for _ in range(b.count)] + [1]
        return tuple(itertools.pairwise(widths))

    def __str__(self) -> str:
        """Return the normalised architecture string."""
        return "-".join([*map(str, self.blocks), "1"])


def _parse_block(part: str, place: int, text: str) -> Block:
    where = f"block {place} ({part!r}) of architecture {text!r}"
    match = _BLOCK.fullmatch(part)
    if match is None:
        raise ArchitectureError(
            f"{where} is not <width><letters>x<count><letters>, such as 1024BARx4 or 1024BAx4R"
        )
    numbers = [match[name] or "1" for name in ("width", "count", "branches")]
    if max(map(len, numbers)) > _DIGITS:
        raise ArchitectureError(f"{where}: a number has more than {_DIGITS} digits")
    letters, after = match["letters"], match["after"] or ""
    for allowed, found, side in (("BARD", letters, "before x"), ("RD", after, "after the count")):
        for letter in found:
            if letter not in allowed:
                raise ArchitectureError(
                    f"{where}: letter {letter!r} {side} is none of {', '.join(allowed)}"
                )
            if found.count(letter) > 1:
                raise ArchitectureError(f"{where}: letter {letter!r} stands twice {side}")
    if "A" not in letters:
        raise ArchitectureError(
            f"{where} has no activation; write an A, such as "
            f"{match['width']}Ax{match['count'] or 1}"
        )
    for letter, word in (("R", "shortcut"), ("D", "dropout")):
        if letter in letters and letter in after:
            raise ArchitectureError(
                f"{where} asks for {word} per layer and per block: keep one of the two {letter}"
            )
    width, count, branches = map(int, numbers)
    if min(width, count, branches) < 1:
        raise ArchitectureError(f"{where}: width, count and branches must be at least 1")
    norm = "none"
    if "B" in letters:
        norm = "before" if letters.index("B") < letters.index("A") else "after"
    return Block(
        width=width,
        count=count,
        norm=norm,
        shortcut="layer" if "R" in letters else "block" if "R" in after else "none",
        dropout="layer" if "D" in letters else "block" if "D" in after else "none",
        branches=branches,
    )
