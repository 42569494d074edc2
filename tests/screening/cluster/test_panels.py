from __future__ import annotations

from typing import Any

import pytest
from lxml import html

from screening.cluster import panels
from screening.cluster.panels import (
    ClusterMemory,
    ProcessMemory,
    arrange_histogram,
    build_best,
    build_failures,
    build_funnel,
    build_heading,
    build_invitation,
    build_notice,
    build_stages,
    build_uncertainty,
    build_workers,
    label_campaign,
)
from screening.folder import STD_EDGES
from screening.status import SILENCE_SECONDS, CampaignStatus

EVIL = "<script>alert(1)</script>\"'&amp;<img src=x onerror=alert(2)>"
"""Text of users that tries to be more than text; no reader may see another."""

GIB = 2**30
MEMORY = ClusterMemory(
    ProcessMemory(GIB // 2), {"0": ProcessMemory(GIB, 4 * GIB), "other": ProcessMemory(GIB)}
)


def make_status(**changes: Any) -> CampaignStatus:
    """The status of a campaign in the middle, as its driver publishes it."""
    row = {
        "prototype": "perovskite", "candidate": 7, "formula": "KMgF3",
        "formation_enthalpy_ev_per_atom": -3.1234, "energy_above_hull_ev_per_atom": -0.0412,
        "energy_above_hull_std_ev_per_atom": 0.0213, "p_stable": 0.983,
    }  # fmt: skip
    worker = {
        "name": "0", "host": "node1", "device": "cpu", "candidates": 4000,
        "candidates_per_second": 1812.3, "memory_bytes": 2 * GIB,
    }  # fmt: skip
    return CampaignStatus.from_json(
        {
            "state": "running", "campaign": "first", "prototypes": ["perovskite"],
            "total": 10_000, "enumerated": 4000, "featurized": 3500, "scored": 3480,
            "failed": 20, "removed": 500, "dropped": 480, "below_hull": 34, "probable": 2,
            "shards": 10, "shards_done": 4, "shards_quarantined": 0, "quarantined": {},
            "reasons": {"no data of He": 20}, "workers_seen": 1, "workers": [worker],
            "stages": {
                "score": {"worker_seconds": 75.0, "candidates_per_worker_second": 1234.5}
            },
            "best": [row], "ranked_by": "p_stable",
            "std_histogram": [1000, 2000, 480, *[0] * (len(STD_EDGES) - 3)],
            "competitor_tasks": 2, "competitor_tasks_done": 2, "elapsed_seconds": 83.0,
            "candidates_per_second": 1750.0, "seconds_left": 3.43,
            "driver": {"pid": 42, "host": "login", "since": "2026-01-02T03:04:05+00:00"},
            "updated": "2026-01-02T03:05:28+00:00",
        }
        | changes
    )  # fmt: skip


def read(text: str, path: str) -> list[str]:
    """Return the texts of the elements of a panel that a path names."""
    return ["".join(each.itertext()) for each in html.fromstring(f"<div>{text}</div>").xpath(path)]


def read_rows(text: str) -> list[list[str]]:
    rows = html.fromstring(f"<div>{text}</div>").xpath("//tr")
    return [["".join(cell.itertext()) for cell in row] for row in rows]


def test_the_heading_says_how_far_a_campaign_is() -> None:
    text = build_heading(make_status(), 0.0)
    assert read(text, "//h1") == ["first"]
    assert read(text, "//*[@class='badge running']") == ["running"]
    values = read(text, "//*[@class='value']")
    assert values == ["40.0 %", "1,750", "3.4 s", "1 min 23 s", "4 of 10"]
    labels = read(text, "//*[@class='label']")
    assert labels == ["of all candidates", "candidates/s", "left", "elapsed", "shards"]
    [origin] = read(text, "//p")
    assert origin == (
        "Prototype perovskite; driver: process 42 on login; as of 2026-01-02 03:05:28 UTC"
    )


def test_nearly_all_is_not_all() -> None:
    text = build_heading(make_status(enumerated=9_999_999, total=10_000_000), 0.0)
    assert read(text, "//*[@class='value']")[0] == "99.9 %"


def test_a_driver_that_fell_silent_is_named() -> None:
    quiet, silent = (build_heading(make_status(), s) for s in (SILENCE_SECONDS - 1, 125.0))
    assert "Nothing heard" not in quiet
    assert read(silent, "//*[@class='badge silent']") == ["silent"]
    [warning] = read(silent, "//*[@class='warning']")
    assert "the driver (process 42 on login) for 2 min 00 s" in warning
    done = make_status(state="complete", candidates_per_second=None, seconds_left=None)
    assert "Nothing heard" not in build_heading(done, 1e6)


def test_competing_phases_come_first() -> None:
    text = build_heading(make_status(competitor_tasks=1200, competitor_tasks_done=3), 0.0)
    assert "Competing phases are predicted first: 3 of 1,200 tasks are done." in read(text, "//p")


def test_the_funnel_counts_every_candidate() -> None:
    text = build_funnel(make_status())
    counts = dict(
        zip(
            read(text, "//*[@data-step]/span[1]"),
            zip(read(text, "//*[@class='count']"), read(text, "//*[@class='share']"), strict=True),
            strict=True,
        )
    )
    assert counts == {
        "Candidates": ("10,000", "100.0 %"),
        "Enumerated": ("4,000", "40.0 %"),
        "Removed by conditions": ("500", "5.0 %"),
        "Featurized": ("3,500", "35.0 %"),
        "Failed": ("20", "0.2 %"),
        "Scored": ("3,480", "34.8 %"),
        "Scored, not kept": ("480", "4.8 %"),
        "On or below the hull": ("34", "0.3 %"),
        "Probably stable (p ≥ 0.5)": ("2", "< 0.1 %"),
    }
    assert 'style="width: 34.80%"' in text


def test_the_best_rows_have_units_and_no_holes() -> None:
    assert read_rows(build_best(make_status())) == [
        ["", "Formula", "Prototype", "Formation enthalpy, eV/atom",
         "Energy above hull, eV/atom", "Probability of being stable"],
        ["1", "KMgF3", "perovskite", "−3.123", "−0.041 ± 0.021", "0.98"],
    ]  # fmt: skip
    [row] = make_status().to_json()["best"]
    bare = row | {
        "energy_above_hull_ev_per_atom": None, "energy_above_hull_std_ev_per_atom": None,
        "p_stable": None,
    }  # fmt: skip
    text = build_best(make_status(best=[bare], ranked_by="formation_enthalpy"))
    assert read_rows(text)[1] == ["1", "KMgF3", "perovskite", "−3.123"]
    assert "Ranked by formation enthalpy." in text
    assert "Best 1 so far" in text
    assert "so far" not in build_best(make_status(state="complete"))


def test_stages_and_workers_have_rates_and_memory() -> None:
    assert read_rows(build_stages(make_status()))[1] == ["score", "1 min 15 s", "1,234"]
    rows = read_rows(build_workers(make_status(), MEMORY))
    assert rows[0][4:] == [
        "Candidates/s", "Memory as the driver sees it, GiB", "as the scheduler sees it, GiB",
        "Limit, GiB",
    ]  # fmt: skip
    assert rows[1:] == [
        ["0", "node1", "cpu", "4,000", "1,812", "2.00", "1.00", "4.00"],
        ["All workers", "", "", "4,000", "1,812", "2.00", "2.00", "4.00"],
        ["Dask scheduler", "", "", "", "", "", "0.50", ""],
    ]


def test_many_workers_are_added_up_only_where_all_are_known() -> None:
    [worker] = make_status().to_json()["workers"]
    some = [worker | {"name": str(number)} for number in range(panels.MOST_WORKERS + 3)]
    rows = read_rows(build_workers(make_status(workers=some, workers_seen=len(some)), MEMORY))
    assert [row[0] for row in rows[-3:]] == ["3 more", "All workers", "Dask scheduler"]
    assert rows[-2][3] == f"{4000 * len(some):,}"
    rows = read_rows(build_workers(make_status(workers=some, workers_seen=1000), MEMORY))
    assert rows[-3][0] == f"{1000 - panels.MOST_WORKERS} more"
    assert rows[-2][3:] == ["", "", "", "2.00", "4.00"]


def test_failures_are_sorted_and_the_rest_is_added_up() -> None:
    assert read(build_failures(make_status(reasons={})), "//p") == ["None."]
    more = panels.MOST_REASONS + 2
    reasons = {f"reason {number:02d}": 100 + number for number in range(more)}
    lost = {str(number): f"why {number}" for number in range(panels.MOST_QUARANTINED)}
    text = build_failures(make_status(reasons=reasons, quarantined=lost, shards_quarantined=1234))
    rows = read_rows(text)
    assert rows[1] == [f"reason {more - 1:02d}", f"{100 + more - 1}"]
    assert rows[panels.MOST_REASONS + 1] == ["2 more reasons", "201"]
    assert "Quarantined shards: 1,234" in text
    assert rows[-2:] == [["7", "why 7"], ["", f"{1234 - panels.MOST_QUARANTINED:,} more"]]


def test_the_histogram_has_an_open_end() -> None:
    edges = (0.0, 0.1, 0.2)
    left, right, counts = arrange_histogram((5, 6, 7), edges)
    assert left == edges
    assert right == pytest.approx((0.1, 0.2, 0.3))
    assert counts == (5, 6, 7)
    assert arrange_histogram((), edges)[2] == (0, 0, 0)
    assert "3,480 candidates; the median lies at 0.10 to 0.20 eV/atom" in build_uncertainty(
        make_status(std_histogram=[1000, 2000, 480]), edges
    )
    last = build_uncertainty(make_status(std_histogram=[1, 1, 9]), edges)
    assert "the median lies at 0.20 or more eV/atom" in last
    assert "Nothing is scored yet." in build_uncertainty(make_status(std_histogram=[]), edges)


def test_a_campaign_that_has_just_begun_has_nothing_to_show() -> None:
    counts = ("enumerated", "featurized", "scored", "failed", "removed", "dropped")
    zero: dict[str, Any] = dict.fromkeys((*counts, "below_hull", "probable", "shards_done"), 0)
    begun = make_status(
        **zero, best=[], stages={}, reasons={}, workers=[], workers_seen=0, std_histogram=[],
        candidates_per_second=None, seconds_left=None, elapsed_seconds=None, driver=None,
    )  # fmt: skip
    assert read(build_heading(begun, 0.0), "//*[@class='value']")[:4] == ["0.0 %", "–", "–", "–"]
    assert "Nothing is scored yet." in build_best(begun)
    assert "No shard is finished yet." in build_stages(begun)
    assert read_rows(build_workers(begun, MEMORY))[1][0] == "All workers"
    assert set(read(build_funnel(begun), "//*[@class='count']")[1:]) == {"0"}
    assert label_campaign(begun) == "first (running)"
    nothing = make_status(**zero, total=0)
    assert read(build_funnel(nothing), "//*[@class='share']")[0] == "0.0 %"


def test_text_of_users_is_text() -> None:
    [row] = make_status().to_json()["best"]
    [worker] = make_status().to_json()["workers"]
    evil = make_status(
        campaign=EVIL,
        prototypes=[EVIL],
        best=[row | {"prototype": EVIL, "formula": EVIL}],
        reasons={EVIL: 20},
        quarantined={"3": EVIL},
        shards_quarantined=1,
        workers=[worker | {"name": EVIL, "host": EVIL, "device": EVIL}],
        stages={EVIL: {"worker_seconds": 1.0, "candidates_per_worker_second": 1.0}},
        driver={"pid": 1, "host": EVIL, "since": EVIL},
        updated=EVIL,
    )
    built = {
        "heading": (build_heading(evil, 100.0), 5),
        "funnel": (build_funnel(evil), 0),
        "best": (build_best(evil), 2),
        "stages": (build_stages(evil), 1),
        "workers": (build_workers(evil, MEMORY), 3),
        "failures": (build_failures(evil), 2),
        "uncertainty": (build_uncertainty(evil, STD_EDGES), 0),
        "invitation": (build_invitation(EVIL, 3), 1),
    }
    for name, (text, times) in built.items():
        page = html.fromstring(f"<div>{text}</div>")
        assert not page.xpath("//script | //img | //*[@onerror]"), name
        assert "".join(page.itertext()).count(EVIL) == times, name


def test_messages_that_cannot_be_read_are_counted() -> None:
    assert build_notice(0) == ""
    assert "1,234 messages of campaigns could not be read" in build_notice(1234)
    text = build_invitation("tcp://host:8786", 0)
    assert "--scheduler tcp://host:8786" in text
    assert "could not be read" not in text


def test_what_is_not_computed_is_not_counted() -> None:
    [row] = make_status().to_json()["best"]
    bare = row | {"energy_above_hull_ev_per_atom": None, "p_stable": None}
    labels = read(build_funnel(make_status(best=[bare])), "//*[@data-step]/span[1]")
    assert "Scored" in labels
    assert not any("hull" in label or "Probably" in label for label in labels)
