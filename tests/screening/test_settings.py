from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from screening.errors import ConfigurationError
from screening.settings import CampaignSettings, Device, read_settings, write_settings


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_flag_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.toml",
        'prototype = "B2"\nout = "runs/a"\nshard-size = 100\ndevice = "cpu"\n',
    )
    settings = read_settings(file, {"out": Path("runs/b"), "device": None, "elements": []})
    assert settings.prototype == ("B2",)
    assert settings.out == Path("runs/b")
    assert settings.shard_size == 100
    assert settings.device is Device.CPU
    assert settings.elements == ("default",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('protoype = "B2"', 'unknown key "protoype".*did you mean "prototype"'),
        ("shard-sise = 1", 'did you mean "shard_size"'),
        ('prototype = "B2"\nout = "a"\ndevice = "gpu"', 'device = "gpu" in .* is not one of auto'),
        ('prototype = "B2"\nout = "a"\nworkers = -1', "workers = -1"),
        ('prototype = "B2"\nout = "a"\nworkers = "many"', 'workers = "many"'),
        ('prototype = []\nout = "a"', "prototype"),
        ('out = "a"', "no prototype given; give --prototype"),
        ('prototype = "B2"', "no out given; give --out"),
        ('prototype = "B2"\nout = "a"\nworkers = 2\nscheduler = "tcp://x:1"', "would start others"),
        ('prototype = "B2"\nout = "a"\n[cluster]\ntipe = "slurm"', 'did you mean "type"'),
        ('prototype = "B2"\nout = "a"\n[cluster]\ntype = "slurm"', "needs cores and memory"),
        ('prototype = "B2"\nout = "a"\nkeep-top = 0', "keep_top = 0"),
        ('prototype = "B2"\nworkers = "no"\n[cluster]', r"wrong setting in \S*c.toml: workers = "),
        ('prototype = "B2"\n[cluster]\nworkers = "no"', r"wrong setting in \[cluster\] of \S*c"),
        ("prototype = ", "not valid TOML"),
    ],
)
def test_wrong_files_are_refused(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        read_settings(write(tmp_path / "c.toml", text), {})


def test_a_wrong_flag_is_not_put_down_to_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'prototype = "B2"\nout = "a"\nprecision = "fp8"\n')
    with pytest.raises(ConfigurationError) as caught:
        read_settings(file, {"device": "gpu"})
    flag, line = str(caught.value).splitlines()
    assert flag.startswith("wrong setting: --device gpu is not one of auto, cpu, cuda")
    assert line.startswith(
        f'wrong setting: precision = "fp8" in {file} is not one of auto, int8, bf16, fp32'
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml"):
        read_settings(tmp_path / "nowhere.toml", {})


def test_a_flag_for_workers_replaces_the_scheduler_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'prototype = "B2"\nout = "a"\nscheduler = "tcp://x:1"\n')
    settings = read_settings(file, {"workers": 0})
    assert settings.cluster.scheduler is None
    assert settings.cluster.workers == 0


@hypothesis.settings(deadline=None)
@given(
    st.builds(
        CampaignSettings,
        prototype=st.lists(st.text(min_size=1), min_size=1).map(tuple),
        elements=st.lists(st.text(min_size=1), min_size=1).map(tuple),
        out=st.just(Path("runs/first")),
        workers=st.none() | st.integers(0, 100),
        device=st.sampled_from(Device),
        shard_size=st.integers(1, 10**6),
    )
)
def test_written_settings_read_back_the_same(settings: CampaignSettings) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.toml"
        path.write_text(write_settings(settings, ("a comment",)), encoding="utf-8")
        assert read_settings(path, {}) == settings
