from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import psutil
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster

from screening.cluster import dashboard
from screening.cluster.dashboard import (
    MOST_CAMPAIGNS,
    PAGE_TOPIC,
    Board,
    ScreeningPage,
    add_page,
    find_address,
    install_page,
)
from screening.cluster.publication import STATUS_TOPIC
from screening.folder import RunFolder
from screening.status import CampaignStatus, read_status
from tests.browser import Tab, open_browser, open_tab
from tests.screening.cluster.test_panels import EVIL, make_status

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[3]

SECONDS = 180.0
"""How long something is waited for on a machine that has much else to do."""

EVIL_FILE = "<img src=x onerror=alert(1)>\"'&lt;b&gt;.cif"
"""Name of a CIF file, which becomes that of a prototype."""

CESIUM_CHLORIDE = """data_x
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Cs1 Cs 0 0 0
Cl1 Cl 0.5 0.5 0.5
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


def wait_until(happened: Callable[[], Any]) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + SECONDS
    while not (found := happened()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


@contextmanager
def running(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python with these arguments; end it and its children on leaving."""
    path = os.pathsep.join(filter(None, (environment.pop("shadow", ""), str(ROOT))))
    process = subprocess.Popen(
        [sys.executable, "-P", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        with ExitStack() as stack:
            stack.callback(process.communicate, timeout=SECONDS)
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    stack.callback(child.kill)
                process.terminate()


@contextmanager
def scheduler(folder: Path, *options: str, **environment: str) -> Iterator[Client]:
    """Start a scheduler in a process of its own, which wrote its address into `scheduler.json`."""
    path = folder / "scheduler.json"
    path.unlink(missing_ok=True)
    listen = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
    command = ("-m", "distributed.cli.dask_scheduler", "--scheduler-file", path, *listen, *options)
    with running(*command, **environment):
        wait_until(lambda: path.is_file() and path.read_text().endswith("}"))
        with Client(scheduler_file=str(path), set_as_default=False) as client:
            yield client


@pytest.fixture
def client() -> Iterator[Client]:
    """Client of a scheduler in this process that was started without the page, and no workers."""
    with (
        LocalCluster(
            n_workers=0, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def publish(client: Client, **changes: Any) -> CampaignStatus:
    status = make_status(**changes)
    client.log_event(STATUS_TOPIC, status.to_json())
    return status


def read_funnel(tab: Tab) -> dict[str, int]:
    """Return the numbers of the funnel, all of one moment."""
    steps: dict[str, str] = tab.page.locator("[data-step]").evaluate_all(
        "all => Object.fromEntries("
        "all.map(each => [each.dataset.step, each.querySelector('.count').textContent]))"
    )
    return {name: int(text.replace(",", "")) for name, text in steps.items()}


def funnel_of(status: CampaignStatus) -> dict[str, int]:
    names = ["total", "enumerated", "removed", "featurized", "failed", "scored", "dropped"]
    names += ["below_hull"] * status.has_hull + ["probable"] * status.has_probability
    return {name: getattr(status, name) for name in names}


def read_table(tab: Tab, caption: str) -> list[list[str]]:
    """Return the cells of a table without its header."""
    rows: list[list[str]] = tab.page.locator("table", has_text=caption).evaluate(
        "table => [...table.tBodies[0].rows]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return rows


def test_a_page_is_installed_once_and_linked_from_the_menu(
    client: Client, browser: Browser
) -> None:
    address = install_page(client, pytest.fail)
    assert address is not None
    assert address == install_page(client, pytest.fail)
    assert len(client.get_events(PAGE_TOPIC)) == 1
    with open_tab(browser, client.dashboard_link) as tab:
        [link] = tab.page.get_by_text("Screening", exact=True).all()
        link.click()
        tab.page.wait_for_url(address)
        tab.wait_for("all('h1').length === 1")
        assert tab.read("h1") == ["No campaign yet"]
        assert "--scheduler tcp://127.0.0.1:" in tab.read("p")[0]
        assert tab.read(".funnel") == []
        assert tab.errors == []


def test_text_of_users_stays_text(client: Client, browser: Browser) -> None:
    [row] = make_status().to_json()["best"]
    [worker] = make_status().to_json()["workers"]
    address = install_page(client, pytest.fail)
    assert address is not None
    publish(
        client,
        campaign=EVIL,
        prototypes=[EVIL, "$$x^2$$"],
        best=[row | {"prototype": EVIL}],
        reasons={EVIL: 20},
        quarantined={"3": EVIL},
        shards_quarantined=1,
        workers=[worker | {"name": EVIL, "host": EVIL, "device": EVIL}],
    )
    with open_tab(browser, address) as tab:
        tab.wait_for("all('.funnel').length === 1")
        assert tab.read("h1") == [EVIL]
        assert f"Prototypes {EVIL}, $$x^2$$; " in tab.read("p")[0]
        assert read_table(tab, "Best 1 so far")[0][2] == EVIL
        assert read_table(tab, "Failures by reason") == [[EVIL, "20"]]
        assert read_table(tab, "Quarantined shards: 1") == [["3", EVIL]]
        assert read_table(tab, "Workers and memory")[0][:3] == [EVIL] * 3
        publish(client, campaign="second" + EVIL)
        tab.wait_for("all('option').length === 3")
        since = " (running, since 2026-01-02 03:04:05 UTC)"
        labels = [name + since for name in ("second" + EVIL, EVIL)]
        assert tab.read("option") == [f"the newest: {labels[0]}", *labels]
        assert tab.page.locator("img[src=x]").count() == 0
        assert tab.errors == []


def test_a_page_follows_the_newest_campaign_or_the_one_that_was_chosen(
    client: Client, browser: Browser
) -> None:
    address = install_page(client, pytest.fail)
    assert address is not None
    publish(client, campaign="first")
    with open_tab(browser, address) as tab:
        tab.wait_for("all('h1')[0]?.textContent === 'first'")
        select = tab.page.locator("select")
        assert not select.is_visible()
        publish(client, campaign="second")
        publish(client, campaign="third", std_histogram=[1, 2, 3])
        client.log_event(STATUS_TOPIC, {"of": "another version"})
        tab.wait_for("all('h1')[0].textContent === 'second'")
        tab.wait_for("all('.warning')[0]?.textContent.startsWith('2 messages')")
        first = publish(client, campaign="first", scored=3481)
        assert tab.read("h1") == ["second"]
        select.select_option(index=2)
        tab.wait_for("all('h1')[0].textContent === 'first'")
        assert read_funnel(tab) == funnel_of(first)
        publish(client, campaign="second", state="complete")
        publish(client, campaign="first", scored=3482)
        tab.wait_for("all('[data-step=scored] .count')[0].textContent === '3,482'")
        select.select_option(index=0)
        tab.wait_for("all('.badge')[0].textContent === 'complete'")
        assert tab.errors == []


def test_a_page_of_a_campaign_on_workers_of_its_own(
    tiny_model: Path, tmp_path: Path, browser: Browser
) -> None:
    out = tmp_path / "run"
    command = make_command(tiny_model, out, "--workers", 1, "--dashboard", "127.0.0.1:0")
    with running(*command) as driver, Pausing() as pausing:
        address = find_page(driver)
        with open_tab(browser, address) as tab:
            wait_until(lambda: count_receipts(out) > 2)
            for worker in psutil.Process(driver.pid).children(recursive=True):
                pausing.pause(worker)

            def agree() -> dict[str, int] | None:
                status = CampaignStatus.from_json((out / "status.json").read_bytes())
                shown = read_funnel(tab)
                agreed = shown == funnel_of(status) and shown["enumerated"] > 0
                return shown if agreed else None

            shown = wait_until(agree)
            assert 0 < shown["enumerated"] < shown["total"] == 1716
            pausing.go_on()
            wait_until(lambda: read_funnel(tab)["enumerated"] > shown["enumerated"])
            assert tab.errors == []


def test_a_page_of_a_scheduler_that_was_started_with_it(
    tiny_model: Path, tmp_path: Path, browser: Browser
) -> None:
    cif = tmp_path / EVIL_FILE
    cif.write_text(CESIUM_CHLORIDE)
    out = tmp_path / "run"
    connection = ("--scheduler-file", tmp_path / "scheduler.json")
    worker_command = ("-m", "distributed.cli.dask_worker", *connection, "--nthreads", 1)
    command = make_command(tiny_model, out, "--prototype", cif, *connection)
    with ExitStack() as stack:
        client = stack.enter_context(scheduler(tmp_path, "--preload", "screening.cluster.preload"))
        address = install_page(client, pytest.fail)
        assert address is not None
        tab = stack.enter_context(open_tab(browser, address))
        worker = stack.enter_context(running(*worker_command, "--no-nanny", "--no-dashboard"))
        driver = stack.enter_context(running(*command))
        pausing = stack.enter_context(Pausing())  # goes on before the others are ended
        assert find_page(driver) == address

        wait_until(lambda: count_receipts(out) > 2)
        pausing.pause(psutil.Process(worker.pid))

        def agree() -> CampaignStatus | None:
            status = CampaignStatus.from_json(client.get_events(STATUS_TOPIC)[-1][1])
            agreed = read_funnel(tab) == funnel_of(status) and status.enumerated > 0
            return status if agreed else None

        middle = wait_until(agree)
        assert 0 < middle.enumerated < middle.total == 1716 + 78
        assert tab.read(".badge") == ["running"]
        pausing.go_on()

        tab.wait_for("all('.badge')[0].textContent === 'complete'")
        driver.communicate(timeout=SECONDS)
        assert driver.returncode == 0
        ranking = pq.read_table(out / "ranking.parquet")
        status = read_status(RunFolder.open(out))
        assert read_funnel(tab) == funnel_of(status)
        assert status.scored == len(ranking) == status.total - status.removed > 0
        assert status.removed > 0
        assert tab.read(".value")[0] == "100.0 %"
        best = read_table(tab, "Best 10")
        assert [row[1] for row in best] == ranking["formula"].to_pylist()[:10]
        energies = ranking["energy_above_hull_ev_per_atom"].to_pylist()[:10]
        assert [row[4].split()[0] for row in best] == [
            f"{e:.3f}".replace("-", "−") for e in energies
        ]
        stages = read_table(tab, "Stages")
        assert [row[0] for row in stages] == list(status.stages)
        computed, everything, dask = read_table(tab, "Workers and memory")
        assert computed[2:4] == ["cpu", f"{status.enumerated:,}"] == ["cpu", everything[3]]
        assert all(float(row[6]) > 0 for row in (computed, everything, dask))
        counts = tab.page.evaluate("Bokeh.documents[0].get_model_by_name('bars').data.count")
        assert list(counts) == list(status.std_histogram)
        assert sum(counts) == status.scored
        assert EVIL_FILE.removesuffix(".cif") in tab.read("p")[0]
        assert tab.errors == []


class Pausing:
    """Holds processes, and lets all of them go on at the end."""

    def __init__(self) -> None:
        self._held: list[psutil.Process] = []

    def __enter__(self) -> Pausing:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()

    def pause(self, process: psutil.Process) -> None:
        process.send_signal(signal.SIGSTOP)
        self._held.append(process)

    def go_on(self) -> None:
        while self._held:
            self._held.pop().send_signal(signal.SIGCONT)


def make_command(model: Path, out: Path, *options: object) -> tuple[object, ...]:
    """A campaign of 1,716 candidates in many shards, which takes a few seconds."""
    references = out.with_suffix(".csv")
    references.write_text("formula,formation_energy_per_atom\nNaCl,-2.1\nMgO,-3.0\n")
    return (
        "-m", "screening", "run", "--model", model, "--out", out, "--device", "cpu",
        "--prototype", "cubic_perovskite", "--elements", "Li,Na,K,Rb,Mg,Ca,Ti,Fe,Al,O,S,F,Cl",
        "--references", references, "--functional", "PBE", "--competitors", "none",
        "--require", "charge_neutral", "--shard-size", 100, *options,
    )  # fmt: skip


def count_receipts(out: Path) -> int:
    return len(list(out.glob("shards/?????.json")))


def find_page(driver: subprocess.Popen[str]) -> str:
    """Return the address that a campaign says its dashboard has."""
    assert driver.stderr is not None
    said = []
    for line in driver.stderr:
        said.append(line)
        if found := re.match(r"dashboard: (http://\S+/screening)$", line):
            return found[1]
    raise AssertionError("".join(said))


def test_a_scheduler_without_a_dashboard_is_noted() -> None:
    said: list[str] = []
    with (
        LocalCluster(
            n_workers=0,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert install_page(client, said.append) is None
    assert said == [
        "the page of campaigns on the Dask dashboard: the scheduler runs without a dashboard"
    ]


@pytest.mark.parametrize(
    ("missing", "note"),
    [
        ("bokeh", "the scheduler has no dashboard (not here)"),
        ("screening", "(ImportError: not here); it needs the same screening as this program"),
    ],
)
def test_what_a_scheduler_lacks_is_noted(tmp_path: Path, missing: str, note: str) -> None:
    (tmp_path / f"{missing}.py").write_text("raise ImportError('not here')")
    said: list[str] = []
    with scheduler(tmp_path, shadow=str(tmp_path)) as client:
        assert install_page(client, said.append) is None
        assert client.scheduler_info()["workers"] == {}
    assert len(said) == 1
    assert note in said[0]


def test_a_dashboard_below_a_prefix_has_the_page_there() -> None:
    with (
        LocalCluster(
            n_workers=0,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"http_prefix": "/below"},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        address = install_page(client, pytest.fail)
        assert address is not None
        assert address.endswith("/below/screening")
        for page in (address, address.replace("/screening", "/status")):
            with urlopen(page) as answer:
                assert b'<a href="screening">Screening</a>' in answer.read()


def test_addresses_go_through_proxies() -> None:
    hub = "https://hub/user/ann/proxy/8787"
    assert find_address(f"{hub}/status", "") == f"{hub}/screening"
    assert find_address(f"{hub}/status", "/user/ann/proxy/8787") == f"{hub}/screening"
    assert find_address(f"{hub}/", "") == f"{hub}/screening"


def test_a_menu_that_cannot_be_changed_is_noted(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed.dashboard import scheduler as dask_dashboard

    monkeypatch.setattr(
        dask_dashboard, "template_variables", lambda _: {"pages": ["status"], "plots": []}
    )
    said: list[str] = []
    address = install_page(client, said.append)
    assert address is not None
    [note] = said
    assert note.endswith("its menu cannot be changed, so that no link leads to the page /screening")
    with urlopen(address) as answer:
        assert b'<div id="screening">' in answer.read()


def test_campaigns_of_before_the_page_are_shown(client: Client) -> None:
    publish(client, campaign="early")
    install_page(client, pytest.fail)
    board = Board(client.cluster.scheduler)
    assert board.list_campaigns() == []
    said = client.run_on_scheduler(_read_heading)
    assert "<h1>early</h1>" in said


def _read_heading(dask_scheduler: Any) -> str:
    [plugin] = [each for each in dask_scheduler.plugins.values() if isinstance(each, ScreeningPage)]
    heading: str = plugin.board.draw("").texts["heading"]
    return heading


def test_campaigns_are_remembered_up_to_a_number(client: Client) -> None:
    board = Board(client.cluster.scheduler)
    for number in range(MOST_CAMPAIGNS + 5):
        board.take(make_status(campaign=f"c{number}").to_json())
        board.take(make_status(campaign="c0").to_json())
    labels = [label.split()[0] for _, label in board.list_campaigns()]
    assert labels == [*(f"c{n}" for n in range(MOST_CAMPAIGNS + 4, 5, -1)), "c0"]
    assert "<h1>c24</h1>" in board.draw("no such key").texts["heading"]


def test_open_pages_share_drawings_and_change_only_what_changed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bokeh.document import Document

    monkeypatch.setattr(dashboard, "MOST_UPDATES", 2)
    board = Board(client.cluster.scheduler)
    board.take(make_status().to_json())
    pages = [Document() for _ in range(10)]
    add_page(pages[0], board, {})
    assert board.draw("") is board.draw("")
    assert board.seconds_between == 1.0
    changed: list[Any] = []
    pages[0].on_change(lambda event: changed.append(event.model.name))
    [timer] = pages[0].session_callbacks
    board.take(make_status(scored=3481).to_json())
    wait_until(lambda: timer.callback() or changed)
    assert {"funnel"} <= set(changed) <= {"funnel", "heading", "workers"}

    for page in pages[1:]:
        add_page(page, board, {})
    assert board.seconds_between == 5.0
    for page in pages[1:]:
        for leave in page.session_destroyed_callbacks:
            leave(None)
    assert board.open_pages == 1
