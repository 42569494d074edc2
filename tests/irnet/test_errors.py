import pytest

from irnet import FeatureMismatchError, IRNetError
from irnet.errors import check_feature_names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b"], 'expects 3 features, got 2 .*missing "c"'),
        (["a", "b", "c", "d"], 'not known to it "d"'),
        (["a", "c", "b"], "order differs: 'c' is column 1, expected at 2|'b' is column 2"),
        (["a", "a", "b"], 'missing "c"; given twice "a"'),
        ([], 'missing "a", "b", "c"'),
    ],
)
def test_mismatch_names_the_columns(given: list[str], message: str) -> None:
    with pytest.raises(FeatureMismatchError, match=message) as caught:
        check_feature_names(["a", "b", "c"], given)
    assert isinstance(caught.value, IRNetError)
    assert isinstance(caught.value, ValueError)


def test_long_lists_are_cut() -> None:
    with pytest.raises(FeatureMismatchError, match="and 95 more"):
        check_feature_names([f"f{i}" for i in range(100)], [])


def test_equal_names_pass() -> None:
    check_feature_names(("a", "b"), ["a", "b"])
