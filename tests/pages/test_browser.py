"""The pages in a real Chromium: they draw, load nothing, run nothing of the rows, and pass axe-core.

They need ``pip install -e '.[browser]'`` and a Chromium of the system (Debian: ``apt-get install chromium``; another
place: the variable CHROMIUM), and run by ``pytest -m browser tests/pages``. No browser is downloaded.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.bench.measure import Level, recommend
from infermesh.bench.plot import draw, picture_of
from infermesh.pages.run import REPORT, write_report
from infermesh.simulator import Simulator
from infermesh.store.schema import DATABASE
from tests.pages.browser import HOSTILE, IN_BROWSER, WIDTHS, Seen, assert_nothing_found, watched
from tests.support import Lab, committed, embed, experiment, generate, infermesh, texts, wait_until, write_experiment

pytestmark = IN_BROWSER


@contextmanager
def shown(chromium: Any, file: Path, *, width: int = 1280, theme: str = "light") -> Iterator[Seen]:
    """Open a file without a network. Nothing but the file itself may be asked for, and nothing may go wrong."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, offline=True)
    try:
        page = context.new_page()
        seen = watched(page)
        page.goto(file.absolute().as_uri())
        page.wait_for_selector("body[data-ready]", timeout=20_000)
        yield seen
        assert seen.errors == []
        assert seen.requests == [file.absolute().as_uri()]
        assert page.evaluate("window.hacked") is None
    finally:
        context.close()


def assert_accessible(chromium: Any, file: Path) -> None:
    """No violation of axe-core's rules, by day and by night, on a screen and on a phone; and nothing sticks out."""
    for theme in ("light", "dark"):
        for width in WIDTHS:
            with shown(chromium, file, width=width, theme=theme) as seen:
                assert_nothing_found(seen.page, width, theme)


def priced(url: str) -> dict[str, Any]:
    mapping = experiment(url, {"a": generate(), "b": embed("{{ a.text }}"), "c": generate("{{ text }} {{ a.text }}")})
    mapping["deployments"]["d"] |= {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    return mapping | {"report": True, "guards": {"first_errors": None}}


def run(lab: Lab, mapping: dict[str, Any]) -> None:
    """A run, in a thread: the browser's driver has an event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lab.run, mapping).result()


def test_a_finished_run(chromium: Any, lab: Lab, start_simulator: Callable[..., Simulator]) -> None:
    lab.rows(texts(60))
    run(lab, priced(start_simulator(latency_s=0.05, capacity=8).url))
    assert_accessible(chromium, lab.folder / REPORT)
    with shown(chromium, lab.folder / REPORT) as seen:
        charts = int(seen.page.get_attribute("body", "data-ready"))
        assert charts == seen.page.locator("figure .uplot canvas").count() >= 5
        coloured = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(x => x)"
        for place in range(charts):
            assert seen.page.locator("figure .uplot canvas").nth(place).evaluate(coloured)
        seen.page.locator("#rows ~ .scroll").first.wait_for()
        # The figures that are drawn, as a table, made when it is opened; by keyboard.
        seen.page.locator("figure details summary").first.focus()
        seen.page.keyboard.press("Enter")
        table = seen.page.locator("#table-rows table")
        table.wait_for()
        drawn = seen.page.evaluate("JSON.parse(document.getElementById('charts').textContent)[0].x.length")
        assert table.locator("tbody tr").count() == drawn > 1
        with seen.page.expect_download() as download:
            seen.page.locator("#save-rows").click()
        assert download.value.suggested_filename == "rows.png"
        assert Path(download.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_run_with_failures_and_two_sessions(
    chromium: Any, lab: Lab, start_simulator: Callable[..., Simulator]
) -> None:
    lab.rows(texts(40))
    mapping = priced(start_simulator(faults={"server_error": 0.3, "rate_limit": 0.2, "retry_after_s": 0.01}).url)
    mapping["models"]["m"]["max_retries"] = 0
    run(lab, mapping)
    run(lab, mapping)
    assert_accessible(chromium, lab.folder / REPORT)
    with shown(chromium, lab.folder / REPORT) as seen:
        assert seen.page.locator("pre", has_text=re.compile("^infermesh retry .* --stage a")).count() >= 1


def test_a_live_run(chromium: Any, lab: Lab, start_simulator: Callable[..., Simulator]) -> None:
    simulator = start_simulator(latency_s=0.1, capacity=2)
    lab.rows(texts(60))
    running = threading.Thread(target=lab.run, args=(priced(simulator.url),))
    running.start()
    try:
        wait_until(lambda: committed(lab.folder, "a") > 5, "some rows")
        page = write_report(lab.folder, lab.root / "live.html")
    finally:
        running.join()
    assert_accessible(chromium, page)
    with shown(chromium, page) as seen:
        assert seen.page.locator(".state").inner_text() == "▶ running"


def test_hostile_rows(chromium: Any, lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"n": number, "text": text.replace("\x00", ""), "k<b>ey": text} for number, text in enumerate(HOSTILE)])
    mapping = priced(simulator.url)
    mapping["models"]["m"]["timeout"] = 60
    run(lab, mapping)
    with duckdb.connect(str(lab.folder / DATABASE)) as connection:
        for number, text in enumerate(HOSTILE):
            stored = text.replace("\x00", "")
            connection.execute("UPDATE a SET text = ? WHERE row_id = ?", [stored, number])
            connection.execute(
                "UPDATE c SET status = 'error', error_type = ?, error = ? WHERE row_id = ?",
                [stored[:100], stored, number],
            )
            connection.execute(
                "INSERT INTO attempts_log SELECT 'c', row_id, 9, ?, finished_at, 0, 0, 500, ?, 1, 1, 0, 1, ?, NULL "
                "FROM c WHERE row_id = ?",
                [stored[:100], stored[:100], stored[:500], number],
            )
        connection.execute("UPDATE run SET experiment = ?, git_revision = ?", [HOSTILE[0], HOSTILE[1]])
    write_report(lab.folder)
    assert_accessible(chromium, lab.folder / REPORT)
    with shown(chromium, lab.folder / REPORT) as seen:
        for opened in seen.page.locator("details").all():
            opened.evaluate("details => { details.open = true; }")
        told = seen.page.locator("body").inner_text()
        for text in HOSTILE[:6]:
            assert text.split(" \u2028")[0] in told
        assert seen.page.locator("img, iframe, base, form").count() == 0
        assert seen.page.evaluate("document.scripts.length") == 3


def test_a_sweep_and_its_page_again(chromium: Any, lab: Lab, start_simulator: Callable[..., Simulator]) -> None:
    write_experiment(lab.root, priced(start_simulator(latency_s=0.02).url), "mine")
    lab.rows(texts(20))
    key = "stages.a.max_parallel_requests"
    ran = infermesh("run", "-m", "mine", f"{key}=1,2,4", "hydra.sweep.dir=outputs/s", cwd=lab.root)
    assert ran.returncode == 0, ran.stderr
    assert infermesh("report", "outputs/s", cwd=lab.root).stdout == "outputs/s/sweep.html\n"
    assert_accessible(chromium, lab.root / "outputs/s/sweep.html")
    with shown(chromium, lab.root / "outputs/s/sweep.html") as seen:
        assert seen.page.locator("figure .uplot canvas").count() == 2
        assert seen.page.locator("main > .scroll tbody tr").count() == 3


@pytest.mark.parametrize("settings", [(1, 8, 16, 32), (7,), tuple(range(1, 60))])
def test_the_page_of_a_bench(chromium: Any, tmp_path: Path, settings: tuple[int, ...]) -> None:
    levels = [Level(setting, 100, setting, 10.0, 10.0 * setting, 0.1, 0.2, 0.3, 0.2, 0.0, 0.1) for setting in settings]
    draw(tmp_path / "b.html", picture_of("generate: any", levels, recommend(levels)))
    assert_accessible(chromium, tmp_path / "b.html")


def test_paper_is_white(chromium: Any, lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(10))
    run(lab, priced(simulator.url))
    with shown(chromium, lab.folder / REPORT, theme="dark") as seen:
        colour = "getComputedStyle(document.body).backgroundColor"
        assert seen.page.evaluate(colour) == "rgb(13, 17, 23)"
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert seen.page.evaluate(colour) == "rgb(255, 255, 255)"
        seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert seen.page.evaluate(colour) == "rgb(13, 17, 23)"
        assert seen.page.pdf()[:5] == b"%PDF-"
