from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lxml import html
from typer.testing import CliRunner, Result

from screening.cli import app
from screening.folder import RunFolder
from screening.page import SORTING
from screening.report import SHORTLIST, TOP, _describe_new, render_report
from screening.shortlist import DEFAULT_DISTANCE

Browser = Callable[[Path], tuple[str, list[str]]]
Program = Callable[..., Result]

POOL = "Li,Na,K,Cs,Mg,Ca,Tl,O,F,Cl"
EVIL = '<img src=x onerror=alert(1)> & "Co"'
REFERENCES = {"LiF": -3.0, "NaF": -2.8, "NaCl": -2.1, "MgO": -3.0, "CaO": -3.2, "CsNa": 0.2}

AMONG_THEMSELVES = ("--competitors", "none", "--compete")
"""Options for a hull of few phases that the model predicts."""


@dataclass(frozen=True)
class Report:
    """A page, read by lxml."""

    page: Any

    @classmethod
    def read(cls, path: Path) -> Report:
        return cls(html.fromstring(path.read_text()))

    def table(self, caption: str) -> list[dict[str, str]]:
        """Rows of the one table whose caption has these words."""
        [table] = self.page.xpath(f"//table[contains(caption, '{caption}')]")
        head, *body = [
            ["".join(cell.itertext()) for cell in row.xpath("./th|./td")]
            for row in table.xpath(".//tr")
        ]
        return [dict(zip(head, row, strict=True)) for row in body]

    def fact(self, name: str) -> str:
        [value] = self.page.xpath(f"//dt[.='{name}']/following-sibling::dd[1]/text()")
        return str(value)

    @property
    def steps(self) -> dict[str, dict[str, str]]:
        return {row["step"]: row for row in self.table("New: no compound")}

    @property
    def headings(self) -> list[str]:
        return [str(text) for text in self.page.xpath("//h1/text()|//h2/text()")]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.page.xpath("//body//text()")).split())


def run(folder: Path, model: Path, *options: str) -> Path:
    call = [
        "run", "--prototype", "B2", "--prototype", "cubic_perovskite", "--elements", POOL,
        "--model", str(model), "--workers", "0", "--out", str(folder), *options,
    ]  # fmt: skip
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory, calibrated_model: Path) -> Path:
    """45 + 720 candidates against references; the file's name tries to be a tag."""
    folder = tmp_path_factory.mktemp("runs")
    references = folder / f"{EVIL}.csv"
    table = pd.DataFrame(
        {"formula": REFERENCES.keys(), "formation_energy_per_atom": REFERENCES.values()}
    )
    table["id"] = [f"ref-{number}" for number in range(len(table))]
    table.to_csv(references, index=False)
    return run(
        folder / "campaign",
        calibrated_model,
        *("--references", str(references), "--functional", EVIL),
        *("--require", "charge_neutral", "--require", "toxic_elements = none"),
    )


@pytest.fixture(scope="module")
def without_hull(tmp_path_factory: pytest.TempPathFactory, calibrated_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "none"
    return run(folder, calibrated_model, "--competitors", "none")


@pytest.fixture(scope="module")
def uncalibrated(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "itself"
    return run(folder, tiny_model, *AMONG_THEMSELVES)


def frame_of(folder: Path) -> pd.DataFrame:
    return pq.read_table(folder / "ranking.parquet").to_pandas()


def write_energy(value: float) -> str:
    return f"{value:.3f}"


def test_the_top_is_that_of_the_ranking(campaign: Path) -> None:
    frame = frame_of(campaign).head(TOP)
    rows = Report.read(campaign / "report.html").table(f"Best {TOP} of")
    assert len(rows) == TOP
    for row, (_, there) in zip(rows, frame.iterrows(), strict=True):
        assert row["rank"] == str(there["rank"])
        assert row["formula"] == there["formula"]
        assert row["prototype"] == there["prototype"]
        sites = [there[f"site_{role}"] for role in "ABX"]
        assert row["A B X"].split() == [site for site in sites if site]
        above, std = (there[f"energy_above_hull{end}_ev_per_atom"] for end in ("", "_std"))
        assert row["above hull"] == f"{above:.3f} ± {std:.3f}"
        p_stable = there["p_stable"]
        assert row["p_stable"] == (">0.999" if p_stable > 0.9995 else write_energy(p_stable))
        assert row["ΔHf"] == write_energy(there["formation_enthalpy_ev_per_atom"])
        low, high = (there[f"formation_enthalpy_{end}_ev_per_atom"] for end in ("low", "high"))
        assert row["90 % interval"] == f"[{low:.2f}, {high:.2f}]"
        assert row["RF above hull"] == write_energy(there["rf_energy_above_hull_ev_per_atom"])
        assert row["RF rank"] == str(there["rf_rank"])
        assert row["decomposes into"] == there["decomposition"]
        assert row["known"].startswith(there["known_id"] or "yes" if there["known"] else "")
        assert (row["known"] != "") == there["known"]
        nearest = f"{there['nearest_known_formula']} ({there['nearest_known_distance']:.1f})"
        assert row["nearest known"] == nearest
        assert ("not in the training data: Cs" in row["warnings"]) == ("Cs" in sites)
        assert ("charges do not balance" in row["warnings"]) == (there["charge_neutral"] is False)
    assert any(row["known"] for row in rows)
    assert any("Cs" in row["warnings"] for row in rows)


def test_the_funnel_counts_what_the_tables_hold(campaign: Path) -> None:
    frame = frame_of(campaign)
    report, manifest = Report.read(campaign / "report.html"), read_manifest(campaign)
    steps = report.steps
    assert steps["enumerated"]["candidates"] == str(45 + 720)
    removed = {text: counts["removed"] for text, counts in manifest["removed"].items()}
    assert removed["toxic_elements = none"] > 0
    for condition, count in removed.items():
        assert steps[f"removed by {condition}"]["candidates"] == str(count)
    remark = steps["removed by charge_neutral"]["remarks"]
    without = manifest["removed"]["charge_neutral"]["not_applicable"]
    assert remark == f"{without} have no value there and stay"
    assert 45 + 720 - sum(removed.values()) == len(frame)
    by_irnet = frame["energy_above_hull_ev_per_atom"] <= 0.05
    by_forest = frame["rf_energy_above_hull_ev_per_atom"] <= 0.05
    for step, chosen in (
        ("scored and ranked", by_irnet | True),
        ("predicted stable by IRNet", by_irnet),
        ("predicted stable by the Random Forest", by_forest),
        ("predicted stable by both", by_irnet & by_forest),
        ("probably stable", frame["p_stable"] >= 0.5),
    ):
        assert steps[step]["candidates"] == str(chosen.sum())
        assert steps[step]["of these new"] == str((chosen & ~frame["known"]).sum())
    assert 0 < by_irnet.sum() < len(frame)
    new = (by_irnet & ~frame["known"]).sum()
    assert f"predicts {by_irnet.sum()} of them at most 0.05 eV/atom" in report.words
    assert f"; {new} of these are of compositions that are not known" in report.words


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (0, "0 of these are of compositions that are not known."),
        (1, "1 of these is of a composition that is not known."),
        (2, "2 of these are of compositions that are not known."),
    ],
)
def test_a_single_new_composition_is_one(new: int, words: str) -> None:
    assert _describe_new(np.arange(3) < new) == words


def test_failures_stand_in_the_funnel_with_their_reasons(campaign: Path) -> None:
    folder = RunFolder.open(campaign)
    folder.__dict__["manifest"] = folder.manifest | {
        "rows": {"scored": 7, "failed": 3},
        "reasons": {"no radius": 2, "odd <b>": 1},
    }
    step = Report(html.fromstring(render_report(folder, folder.read_ranking()))).steps
    assert step["could not be scored"]["candidates"] == "3"
    assert step["could not be scored"]["remarks"] == "2: no radius; 1: odd <b>"


def test_the_shortlist_is_that_of_the_terminal(campaign: Path, screening: Program) -> None:
    from screening.composition_distance import Compositions, find_distances, read_compositions

    rows = Report.read(campaign / "report.html").table("new compounds unlike each other")
    shown = screening("show", campaign, "--new", "--diverse", "--top", SHORTLIST)
    assert 1 < len(rows) <= SHORTLIST
    assert f"Diverse {len(rows)} of" in shown.stdout
    for row in rows:
        assert re.search(rf"^ *{row['rank']} +{row['formula']} ", shown.stdout, re.MULTILINE)
        assert row.get("known", "") == ""
    read = [Compositions.of(*read_compositions([row["formula"]])) for row in rows]
    assert all(find_distances(*pair)[0] >= DEFAULT_DISTANCE for pair in combinations(read, 2))


def test_every_element_has_its_counts(campaign: Path) -> None:
    frame = frame_of(campaign)
    report = Report.read(campaign / "report.html")
    rows = {row["element"]: row for row in report.table("Elements by the mean p_stable")}
    sites = frame[["site_A", "site_B", "site_X"]]
    assert set(rows) == {site for site in np.unique(sites.fillna("")) if site}
    texts = {}
    for group in report.page.xpath("//*[starts-with(@id, 'element-')]"):
        symbol, *value = ["".join(text.itertext()) for text in group.xpath(".//*[name()='text']")]
        texts[symbol] = value
    assert len(texts) == 118
    for symbol, row in rows.items():
        held = frame[(sites == symbol).any(axis=1)]
        assert row["candidates"] == str(len(held))
        assert row["mean p_stable"] == f"{held['p_stable'].mean():.4f}"
        stable = held["energy_above_hull_ev_per_atom"] <= 0.05
        assert row["predicted stable"] == str(stable.sum())
        assert row["mean ΔHf"] == write_energy(held["formation_enthalpy_ev_per_atom"].mean())
        assert row["best rank"] == str(held["rank"].min())
        assert texts.pop(symbol) == [write_energy(held["p_stable"].mean())]
    assert not any(texts.values())


def test_histograms_hold_every_candidate(campaign: Path) -> None:
    frame = frame_of(campaign)
    report = Report.read(campaign / "report.html")
    rows = report.table("Candidates by energy above hull (eV/atom)")
    for model, column in (("IRNet", ""), ("Random Forest", "rf_")):
        assert sum(int(row[model]) for row in rows) == len(frame)
        below = frame[f"{column}energy_above_hull_ev_per_atom"] < float(rows[10]["from"])
        assert sum(int(row[model]) for row in rows[:10]) == pytest.approx(below.sum(), abs=2)
    shares = report.table("Candidates by p_stable")
    counts = np.histogram(frame["p_stable"], np.linspace(0, 1, 21))[0]
    assert [int(row["IRNet"]) for row in shares] == counts.tolist()


def test_the_models_are_compared_as_the_manifest_has_it(campaign: Path) -> None:
    report, manifest = Report.read(campaign / "report.html"), read_manifest(campaign)
    comparison = manifest["comparison"]
    for name in ("formation enthalpy", "energy above hull"):
        key = f"{name.split()[-1]}_correlation"
        assert report.fact(f"rank correlation, {name}") == f"{comparison[key]:.3f}"
    tops = [(row["top"], row["in both"]) for row in report.table("top of both rankings")]
    assert tops == [(str(each["top"]), str(each["shared"])) for each in comparison["overlaps"]]
    rows = report.table("Largest disagreements among the best 100 of either")
    assert len(rows) == len(comparison["disagreements"]) > 0
    for row, there in zip(rows, comparison["disagreements"], strict=True):
        assert (row["formula"], row["RF rank"]) == (there["formula"], f"{there['rf_rank']:,}")
        assert row["IRNet"] == write_energy(there["irnet_ev_per_atom"])


def test_references_and_the_making_are_told(campaign: Path) -> None:
    report, manifest = Report.read(campaign / "report.html"), read_manifest(campaign)
    references = manifest["competitors"]["references"]
    assert report.fact("file") == references["file"]
    assert report.fact("sha256") == references["sha256"]
    assert report.fact("functional") == EVIL
    assert report.fact("phases") == str(len(REFERENCES))
    assert report.fact("model sha256") == manifest["campaign"]["model"]
    assert manifest["environment"]["packages"]["torch"] in report.fact("packages")
    assert "fitted on 300 compounds" in report.words
    blocks = report.page.xpath("//pre/text()")
    assert (campaign / "campaign.toml").read_text() in blocks
    assert [row["seconds"] for row in report.table("Runs")] == [
        f"{each['wall_seconds']:,.1f}" for each in manifest["runs"]
    ]


def test_names_that_try_to_be_tags_stay_text(
    campaign: Path, tiny_model: Path, tmp_path: Path
) -> None:
    text = (campaign / "report.html").read_text()
    assert "<img" not in text
    assert EVIL in Report(html.fromstring(text)).words
    from pymatgen.core import Lattice, Structure

    path = tmp_path / '<script>alert("1")<svg onload=alert(2)>.cif'
    Structure(Lattice.cubic(4.0), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(str(path), "cif")
    call = ["run", "--prototype", path, "--elements", "Li,Na,F", "--model", tiny_model]
    more = ["--out", tmp_path / "a", "--workers", "0", "--competitors", "none"]
    done = CliRunner().invoke(app, [str(each) for each in (*call, *more)])
    assert done.exit_code == 0, done.output
    report = Report.read(tmp_path / "a" / "report.html")
    assert report.headings[0] == f"Screening of {path.stem}"
    assert report.page.xpath("//title/text()") == [f"Screening of {path.stem}"]
    assert report.page.xpath("//script/text()") == [SORTING]
    assert not report.page.xpath("//*[@onload]")


def test_without_a_hull_enthalpies_take_its_place(without_hull: Path) -> None:
    report, frame = Report.read(without_hull / "report.html"), frame_of(without_hull)
    assert "None was computed" in report.words
    assert "formation enthalpy alone is not stability" in report.words
    assert "no hull was computed" in report.words
    rows = report.table(f"Best {TOP} of")
    assert not {"above hull", "p_stable", "decomposes into"} & set(rows[0])
    assert rows[3]["RF ΔHf"] == write_energy(frame["rf_formation_enthalpy_ev_per_atom"][3])
    assert list(report.steps)[-1] == "scored and ranked"
    [element] = [each for each in report.table("mean formation enthalpy") if each["element"] == "F"]
    held = frame[(frame[["site_A", "site_B", "site_X"]] == "F").any(axis=1)]
    enthalpy = held["formation_enthalpy_ev_per_atom"].mean()
    assert element["mean ΔHf"] == write_energy(enthalpy)
    assert "above hull" not in " ".join(report.table("Largest disagreements")[0])
    assert report.table("Candidates by formation enthalpy (eV/atom)")


def report_against(campaign: Path, **competitors: Any) -> Report:
    """The report of a campaign, as if its candidates had competed with these."""
    folder = RunFolder.open(campaign)
    told = folder.manifest["competitors"] | competitors
    folder.__dict__["manifest"] = folder.manifest | {"competitors": told}
    page = render_report(folder, folder.read_ranking())
    return Report(html.fromstring(page))


def test_a_hull_of_the_models_own_comes_with_a_warning(campaign: Path) -> None:
    predicted = {"rocksalt": 1234, "fluorite": 45}
    report = report_against(campaign, references=None, predicted=predicted)
    assert "No energy of this hull comes from DFT or experiment" in report.words
    assert "1,279 phases of 2 structure types" in report.words
    assert "Before anyone acts on this ranking" in report.words
    types = report.table("Competing phases by structure type")
    assert {row["structure type"]: row["phases predicted"] for row in types} == {
        "rocksalt": "1,234",
        "fluorite": "45",
    }


def test_predicted_phases_beside_references_are_told_apart(campaign: Path) -> None:
    report = report_against(campaign, predicted={"rocksalt": 1234})
    assert "Besides, 1,234 phases of 1 structure type compete" in report.words
    assert "reference phases from a file" in report.words
    assert "No energy of this hull comes from DFT" not in report.words


def test_candidates_alone_among_themselves_are_no_predicted_types(uncalibrated: Path) -> None:
    report = Report.read(uncalibrated / "report.html")
    assert "Candidates of one chemical system compete with each other, too" in report.words
    assert "that the model itself predicted" not in report.words
    assert "None was computed" not in report.words


def test_candidates_that_compete_with_references_make_no_hull_of_the_models_own(
    campaign: Path,
) -> None:
    report = report_against(
        campaign,
        candidates_compete=True,
        predicted={"B2": 45},
        failures=[["Cs<b>", "no radius"], ["NaF", "too large"]],
    )
    assert "Candidates of one chemical system compete with each other, too" in report.words
    assert "structure type that the model itself" not in report.words
    failed = report.table("2 competing phases could not be predicted")
    assert [row["phase"] for row in failed] == ["Cs<b>", "NaF"]


def test_a_model_that_was_never_calibrated_has_no_probabilities(uncalibrated: Path) -> None:
    report, frame = Report.read(uncalibrated / "report.html"), frame_of(uncalibrated)
    assert "never calibrated" in report.words
    rows = report.table(f"Best {TOP} of")
    assert not {"p_stable", "90 % interval"} & set(rows[0])
    assert "probably stable" not in report.steps
    elements = report.table("share of the candidates with it at most 0.05 eV/atom above the hull")
    assert "mean p_stable" not in elements[0]
    stable = frame[frame["energy_above_hull_ev_per_atom"] <= 0.05]
    counted = sum(int(row["predicted stable"]) for row in elements)
    assert counted == stable[["site_A", "site_B", "site_X"]].notna().sum().sum()
    assert "nan" not in report.words


def test_without_a_forest_there_is_nothing_to_compare(tiny_model: Path, tmp_path: Path) -> None:
    from screening.model_card import read_card, write_card

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    card = read_card(model)
    training = card.training.model_copy(update={"forest": None})
    write_card(card.model_copy(update={"training": training}), model)
    report = Report.read(run(tmp_path / "a", model, *AMONG_THEMSELVES) / "report.html")
    assert "The model has no Random Forest to compare with" in report.words
    assert "predicted stable by IRNet" in report.steps
    assert "predicted stable by the Random Forest" not in report.steps
    assert "RF rank" not in report.table(f"Best {TOP} of")[0]
    assert "Random Forest" not in report.table("Candidates by energy above hull")[0]
    assert "nan" not in report.words


def test_of_the_best_alone_the_models_are_not_compared(
    calibrated_model: Path, tmp_path: Path
) -> None:
    folder = run(tmp_path / "a", calibrated_model, "--competitors", "none", "--keep-top", "30")
    report = Report.read(folder / "report.html")
    assert "no Random Forest" not in report.words
    assert "Not compared: the candidates that are best by the Random Forest" in report.words
    assert "RF rank" in report.table("Best 30 of")[0]


def test_a_campaign_without_a_candidate_left_is_told_too(tiny_model: Path, tmp_path: Path) -> None:
    never = "formation_enthalpy_ev_per_atom <= -1000"
    folder = run(tmp_path / "a", tiny_model, "--competitors", "none", "--require", never)
    report = Report.read(folder / "report.html")
    assert "No candidate could be scored" in report.words
    assert "no Random Forest" not in report.words
    assert report.steps["scored and ranked"]["candidates"] == "0"


def test_a_single_candidate_can_be_reported(tiny_model: Path, tmp_path: Path) -> None:
    call = ["run", "-p", "B2", "-e", "Na,Cl", "--model", str(tiny_model), "--workers", "0"]
    done = CliRunner().invoke(app, [*call, *AMONG_THEMSELVES, "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    report = Report.read(tmp_path / "a" / "report.html")
    assert [row["formula"] for row in report.table("Best 1 of 1")] == ["NaCl"]
    assert "All of the best candidates are known" in report.words


def test_the_command_writes_the_same_page(
    campaign: Path, screening: Program, tmp_path: Path
) -> None:
    done = screening("report", campaign, "--out", tmp_path / "new" / "page.html")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "new" / "page.html").read_bytes() == (campaign / "report.html").read_bytes()
    assert "page.html: " in done.stderr
    copy = shutil.copytree(campaign, tmp_path / "copy")
    (copy / "report.html").unlink()
    assert screening("report", copy).exit_code == 0
    assert (copy / "report.html").is_file()


def test_an_incomplete_campaign_is_refused(
    campaign: Path, screening: Program, tmp_path: Path
) -> None:
    copy = shutil.copytree(campaign, tmp_path / "copy")
    (copy / "report.html").unlink()
    (copy / "ranking.parquet").unlink()
    (copy / "shards" / "00000.json").unlink()
    done = screening("report", copy)
    assert done.exit_code == 2
    assert "copy is not complete: 720 of 765 candidates are finished" in done.stderr
    assert f"finish it with: screening run {copy / 'campaign.toml'}" in done.stderr
    assert not (copy / "report.html").exists()
    nowhere = screening("report", tmp_path / "nothing")
    assert nowhere.exit_code == 2
    assert not (tmp_path / "nothing").exists()


def test_a_file_that_is_gone_is_an_error(
    campaign: Path, screening: Program, tmp_path: Path
) -> None:
    copy = shutil.copytree(campaign, tmp_path / "copy")
    (copy / "campaign.toml").unlink()
    done = screening("report", copy)
    assert done.exit_code == 3
    assert "campaign.toml is missing or damaged" in done.stderr


def test_the_page_needs_nothing_else(campaign: Path, without_hull: Path) -> None:
    for folder in (campaign, without_hull):
        page = Report.read(folder / "report.html").page
        assert not page.xpath("//link|//img|//iframe|//@src|//object")
        targets = page.xpath("//@*[name()='href' or name()='xlink:href']")
        assert targets
        assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
        ids = page.xpath("//@id")
        assert len(ids) == len(set(ids))


def test_a_browser_shows_it_without_complaint(campaign: Path, browse: Browser) -> None:
    dom, console = browse(campaign / "report.html")
    assert console == []
    page = html.fromstring(dom)
    assert len(page.xpath("//th/button")) > 20
    assert len(page.xpath(f"//table[contains(caption, 'Best {TOP} of')]/tbody/tr")) == TOP


@pytest.mark.slow
def test_the_largest_campaign_makes_a_small_page_soon(campaign: Path) -> None:
    folder = RunFolder.open(campaign)
    ranking = folder.read_ranking()
    rows = np.sort(np.resize(np.arange(len(ranking)), 681_384))
    large = ranking.take(pa.array(rows))
    large = large.set_column(0, "rank", pa.array(np.arange(1, len(large) + 1)))
    started = time.process_time()
    page = render_report(folder, large)
    assert time.process_time() - started < 6.0  # about 1.5 s on a core of an AMD EPYC
    assert len(page.encode()) < 500_000


def read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest
