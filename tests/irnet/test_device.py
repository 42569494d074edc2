import pytest
import torch

from irnet import DeviceError
from irnet.device import choose_device, choose_dtype


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
