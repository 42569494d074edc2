import pytest
import torch

from irnet import DeviceError
from irnet.device import choose_device, choose_dtype, choose_scoring_precision


def test_auto_and_cpu() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_device("cpu").type == "cpu"


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(DeviceError, match='did you mean "cuda"'):
        choose_device("cuba")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match="--device cpu"):
        choose_device("cuda")


def test_dtypes() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("fp32", cpu) == torch.float32
    assert choose_dtype("bf16", cpu) == torch.bfloat16
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("name", ["bf61", "fp16", "float32", ""])
def test_an_unknown_precision_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"unknown precision '{name}'.*\(auto, bf16, fp32\)"):
        choose_dtype(name, torch.device("cpu"))
    known = r"\(auto, int8, bf16, fp32\)"
    with pytest.raises(DeviceError, match=rf"unknown precision '{name}'.*{known}"):
        choose_scoring_precision(name, torch.device("cpu"))


def test_int8_is_none_of_training() -> None:
    with pytest.raises(DeviceError, match="unknown precision 'int8'"):
        choose_dtype("int8", torch.device("cpu"))


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16", "avx512_vnni"}, "bf16"),
        ({"amx_bf16", "amx_int8", "avx512_vnni"}, "bf16"),
        ({"avx512_vnni"}, "int8"),
        ({"avx_vnni"}, "int8"),
        ({"avx512_f"}, "fp32"),
        (set(), "fp32"),
    ],
)
def test_auto_scores_as_the_processor_multiplies_best(
    able: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(able, True))
    cpu = torch.device("cpu")
    assert choose_scoring_precision("auto", cpu) == expected
    for name in ("bf16", "fp32"):
        assert choose_scoring_precision(name, cpu) == name
    if any("vnni" in each for each in able):
        assert choose_scoring_precision("int8", cpu) == "int8"
        return
    with pytest.raises(DeviceError, match="VNNI instructions, which this processor has not; use"):
        choose_scoring_precision("int8", cpu)


def test_int8_is_none_of_a_gpu() -> None:
    with pytest.raises(DeviceError, match="VNNI instructions, which a GPU has not; use auto, bf16"):
        choose_scoring_precision("int8", torch.device("cuda"))
