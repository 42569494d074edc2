"""The columns are those of the paper, under matminer's names."""

import hashlib

from screening.features.schema import (
    COMPOSITION_FEATURES,
    FEATURES,
    STRUCTURE_FEATURES,
    UNUSED_MATMINER_FEATURES,
)


def test_counts_are_the_papers() -> None:
    # Jha 2019, section 4: 126 attributes of the structure and 145 of the composition.
    assert len(COMPOSITION_FEATURES) == 145
    assert len(STRUCTURE_FEATURES) == 126
    assert len(FEATURES) == len(set(FEATURES)) == 271


def test_names_are_all_of_matminers_but_two_ranges() -> None:
    from screening.features.reference import _featurizers

    composition, structure, _ = _featurizers()
    labels = [label for f in (*composition, *structure) for label in f.feature_labels()]
    assert len(labels) == 273
    assert set(labels) - set(FEATURES) == set(UNUSED_MATMINER_FEATURES)
    assert tuple(label for f in composition for label in f.feature_labels()) == (
        COMPOSITION_FEATURES
    )


def test_order_never_changes() -> None:
    # Trained models hold columns in this order; a change here breaks every one of them.
    digest = hashlib.sha256("\n".join(FEATURES).encode()).hexdigest()
    assert digest == "2b8ca4206764f7410a7a3569f64c0a92039f3f34f1fe5c298b78eb397ace4ae1"
