import pytest
from hypothesis import given
from hypothesis import strategies as st

from irnet import ARCHITECTURES, Architecture, ArchitectureError
from irnet.architecture import Block

# Table 1 of Jha et al. 2019; the FC1024 in the 256 row of the 48-layer IRNet is a misprint.
TABLE_1 = {
    17: [1024] * 4 + [512] * 3 + [256] * 3 + [128] * 3 + [64] * 2 + [32],
    24: [1024] * 4 + [512] * 4 + [256] * 4 + [128] * 4 + [64] * 3 + [32] * 2 + [16] * 2,
    48: [1024] * 8 + [512] * 8 + [256] * 8 + [128] * 8 + [64] * 8 + [32] * 4 + [16] * 3,
}

blocks = st.builds(
    Block,
    width=st.integers(1, 2000),
    count=st.integers(1, 9),
    norm=st.sampled_from(["before", "after", "none"]),
    shortcut=st.sampled_from(["layer", "block", "none"]),
    dropout=st.sampled_from(["layer", "block", "none"]),
    branches=st.integers(1, 3),
)


@pytest.mark.parametrize("depth", TABLE_1)
@pytest.mark.parametrize("kind", ["plain", "srnet", "irnet"])
def test_named_architectures_follow_table_1(kind: str, depth: int) -> None:
    architecture = Architecture.parse(f"{kind}-{depth}")
    widths = [outputs for _, outputs in architecture.main_path(271)]
    assert widths == [*TABLE_1[depth], 1]
    assert architecture.depth == depth
    assert all(block.norm == "before" for block in architecture.blocks)


@pytest.mark.parametrize(
    ("name", "text"),
    [  # as the README of https://github.com/NU-CUCIS/IRNet writes them
        ("plain-17", "1024BAx4-512BAx3-256BAx3-128BAx3-64BAx2-32BAx1-1"),
        ("srnet-17", "1024BAx4R-512BAx3R-256BAx3R-128BAx3R-64BAx2R-32BAx1R-1"),
        ("irnet-17", "1024BARx4-512BARx3-256BARx3-128BARx3-64BARx2-32BARx1-1"),
        ("plain-24", "1024BAx4-512BAx4-256BAx4-128BAx4-64BAx3-32BAx2-16BAx2-1"),
        ("srnet-24", "1024BAx4R-512BAx4R-256BAx4R-128BAx4R-64BAx3R-32BAx2R-16BAx2R-1"),
        ("irnet-24", "1024BARx4-512BARx4-256BARx4-128BARx4-64BARx3-32BARx2-16BARx2-1"),
        (
            "srnet-48",
            "1024BAx4R-1024BAx4R-512BAx4R-512BAx4R-256BAx4R-256BAx4R-128BAx4R-128BAx4R-64BAx4R"
            "-64BAx4R-32BAx4R-16BAx3R-1",
        ),
        (
            "irnet-48",
            "1024BARx4-1024BARx4-512BARx4-512BARx4-256BARx4-256BARx4-128BARx4-128BARx4-64BARx4"
            "-64BARx4-32BARx4-16BARx3-1",
        ),
    ],
)
def test_named_architectures_are_those_of_the_reference_implementation(
    name: str, text: str
) -> None:
    assert str(Architecture.parse(name)) == ARCHITECTURES[name] == text


def test_srnet_48_has_two_stacks_of_four_per_width() -> None:
    stacks = [(block.width, block.count) for block in Architecture.parse("srnet-48").blocks]
    assert stacks[:4] == [(1024, 4), (1024, 4), (512, 4), (512, 4)]


def test_letters() -> None:
    architecture = Architecture.parse("64BARx2-32ABDx3R-16Ax1RD-8RABD-1")
    assert [str(block) for block in architecture.blocks] == [
        "64BARx2",
        "32ABDx3R",
        "16Ax1RD",
        "8ABRDx1",
    ]
    assert architecture.has_dropout


@given(st.lists(blocks, min_size=1, max_size=5))
def test_every_architecture_survives_its_string(parts: list[Block]) -> None:
    architecture = Architecture(tuple(parts))
    assert Architecture.parse(str(architecture)) == architecture
    assert architecture.depth == 1 + sum(block.count for block in parts)


@given(st.text("0123456789BARDPx-Q ", max_size=20))
def test_any_text_gives_an_architecture_or_its_error(text: str) -> None:
    try:
        Architecture.parse(text)
    except ArchitectureError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("irnet-18", 'did you mean "irnet-'),
        ("", "unknown architecture"),
        ("1024BARx4", "must end in -1"),
        ("1024BARx4-2", "must end in -1"),
        ("1", "no hidden layers"),
        ("1024BARx4-512BQRx3-1", "block 2 .*letter 'Q'"),
        ("1024BARx4-512BARx-1", "block 2 .* is not <width>"),
        ("1024BBAx4-1", "letter 'B' stands twice"),
        ("1024x4-1", "has no activation; write an A, such as 1024Ax4"),
        ("1024BARx4R-1", "per layer and per block"),
        ("1024BADx4D-1", "dropout per layer and per block"),
        ("1024BAx4A-1", "letter 'A' after the count"),
        ("0BAx4-1", "at least 1"),
        ("8BAx0-1", "at least 1"),
        ("8Ax2P0-1", "at least 1"),
        ("8Ax2P-1", "block 1 .* is not <width>"),
        ("8APx2-1", "letter 'P' before x"),
    ],
)
def test_errors_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        Architecture.parse(text)


def test_activation_is_one_for_all_layers() -> None:
    assert Architecture.parse("8Ax2-1").activation == "relu"
    assert Architecture.parse("8Ax2-1", "tanh").activation == "tanh"
    with pytest.raises(ArchitectureError, match=r'none of relu, tanh.*did you mean "sigmoid"'):
        Architecture.parse("8Ax2-1", "sigmoi")


def test_names_are_not_case_sensitive() -> None:
    assert str(Architecture.parse("IRNet-17")) == ARCHITECTURES["irnet-17"]
