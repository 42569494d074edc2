import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irnet import DataError, encode_classes
from irnet.rows import check_classes, split_rows


@given(
    st.lists(st.integers(0, 30), min_size=10, max_size=200),
    st.floats(0.01, 0.5),
    st.integers(0, 5),
)
def test_a_split_never_divides_a_group(labels: list[int], fraction: float, seed: int) -> None:
    groups = np.array(labels)
    try:
        train_rows, validation = split_rows(len(groups), fraction, seed, groups)
    except DataError:
        # what the groups that are drawn last leave for training is too little
        sizes = np.bincount(groups)
        assert len(groups) * (1 - fraction) - sizes.max() < 2
        return
    assert not set(groups[train_rows]) & set(groups[validation])
    assert sorted([*train_rows, *validation]) == list(range(len(groups)))
    largest = np.bincount(groups).max()
    assert fraction * len(groups) <= len(validation) <= fraction * len(groups) + largest


def test_split_sizes_and_seeds() -> None:
    _, validation = split_rows(1000, 0.1, 0)
    assert len(validation) == 100
    assert not np.array_equal(validation, split_rows(1000, 0.1, 1)[1])
    with pytest.raises(DataError, match="cannot be split"):
        split_rows(10, 0.1, 0, np.zeros(10, dtype=np.int64))


@given(st.lists(st.sampled_from(["metal", "insulator", "", " ", "None", "1"]), max_size=12))
def test_classes_are_numbered_or_refused(labels: list[str]) -> None:
    found = set(labels)
    if len(found) < 2 or not all(label.strip() for label in found):
        with pytest.raises(DataError):
            encode_classes(labels)
        return
    numbers, classes = encode_classes(labels)
    assert [classes[int(number)] for number in numbers] == labels
    assert list(classes) == sorted(found)
    check_classes(numbers, classes)
