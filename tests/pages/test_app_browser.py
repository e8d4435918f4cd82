"""The app of `infermesh view` in a real Chromium: finished, live and failed runs, a sweep, hostile rows.

No console error, nothing of the rows run, nothing loaded from elsewhere, no violation of axe-core's rules by day and by
night, on a screen and on a phone. They run by ``pytest -m browser tests/pages``, as those of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.pages.app import runs as run_handlers
from infermesh.simulator import Simulator
from infermesh.store.schema import DATABASE
from tests.pages.browser import HOSTILE, IN_BROWSER, WIDTHS, Seen, assert_nothing_found, watched
from tests.pages.serving import Served, going_on, served
from tests.pages.test_browser import priced, run
from tests.support import Lab, infermesh, texts, write_experiment

RUN = "lab/run"
pytestmark = IN_BROWSER


@contextmanager
def opened(chromium: Any, app: Served, *, width: int = 1280, theme: str = "light") -> Iterator[Seen]:
    """A browser that has followed the printed link. Only the app may be asked for, and nothing may go wrong."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    try:
        seen = watched(context.new_page())
        seen.page.goto(app.link)
        assert seen.page.url == f"http://{app.host}/"
        yield seen
        assert seen.errors == []
        assert {url.split("/")[2] for url in seen.requests if not url.startswith(("data:", "blob:"))} == {app.host}
        assert seen.page.evaluate("window.hacked") is None
    finally:
        context.close()


def go(seen: Seen, app: Served, path: str) -> None:
    """Open a page and wait until it is drawn."""
    seen.page.goto(f"http://{app.host}{path}")
    seen.page.wait_for_selector("body[data-ready][data-whole]", timeout=20_000)


def assert_accessible(chromium: Any, app: Served, *paths: str) -> None:
    for theme in ("light", "dark"):
        for width in WIDTHS:
            with opened(chromium, app, width=width, theme=theme) as seen:
                for path in paths:
                    go(seen, app, path)
                    assert_nothing_found(seen.page, width, (path, theme, width))


@pytest.fixture
def app(lab: Lab, start_simulator: Callable[..., Simulator]) -> Iterator[Served]:
    """Two runs, one after the other: the second has failures."""
    lab.rows(texts(60))
    lab.folder = lab.root / "outputs" / "lab" / "before"
    run(lab, priced(start_simulator(latency_s=0.02, capacity=8).url))
    lab.folder = lab.root / "outputs" / RUN
    mapping = priced(start_simulator(faults={"server_error": 0.3, "rate_limit": 0.2, "retry_after_s": 0.01}).url)
    mapping["models"]["m"]["max_retries"] = 0
    run(lab, mapping)
    with served(lab.root / "outputs") as found:
        yield found


def test_every_page_of_a_run_with_failures(chromium: Any, app: Served) -> None:
    paths = ["/", *(f"/{view}/{RUN}" for view in ("overview", "failures", "rows", "row/3", "sql"))]
    assert_accessible(chromium, app, *paths, f"/compare/lab/before?b={RUN}", f"/rows/{RUN}?where=nothing", "/?q=none")


def test_charts_come_later_where_reading_takes_long(
    chromium: Any, app: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_handlers, "_PATIENCE_S", 0.0)
    with opened(chromium, app) as seen:
        go(seen, app, f"/overview/{RUN}")
        assert seen.page.locator("#reading").count() == 0
        assert seen.page.locator("figure .uplot canvas").count() >= 5
        seen.page.locator("figure details summary").first.click()
        seen.page.locator("#table-rows table").wait_for()
        with seen.page.expect_download() as download:
            seen.page.locator("#save-rows").click()
        assert download.value.suggested_filename == "rows.png"


def test_by_keyboard(chromium: Any, app: Served) -> None:
    with opened(chromium, app) as seen:
        page = seen.page
        page.keyboard.press("?")
        page.locator("dialog[open]").wait_for()
        page.keyboard.press("Escape")
        page.locator("dialog[open]").wait_for(state="detached")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "q"
        page.keyboard.type("run?jk")  # letters are letters in a field
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        assert page.evaluate("document.activeElement.getAttribute('href')") == f"/overview/{RUN}"
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/overview/{RUN}")
        page.keyboard.press("r")
        page.wait_for_url(f"**/rows/{RUN}")
        page.keyboard.press("n")
        page.wait_for_url("**after=*")
        page.keyboard.press("p")
        page.wait_for_url(f"**/rows/{RUN}")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/row/0/{RUN}")
        page.keyboard.press("n")
        page.wait_for_url(f"**/row/1/{RUN}")
        page.keyboard.press("Control+k")
        page.wait_for_url("**/#q")
        page.wait_for_selector("#q:focus")


def test_the_sql_box(chromium: Any, app: Served) -> None:
    with opened(chromium, app) as seen:
        page = seen.page
        go(seen, app, f"/sql/{RUN}?sql=SELECT+row_id,+service_s,+text+FROM+a+WHERE+status+=+'done'+ORDER+BY+1")
        page.wait_for_selector("body[data-editor=ready]")
        assert page.locator("#result table").count() == 0  # a link asks nothing by itself
        page.locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        page.locator("#result tbody tr").first.wait_for()
        assert page.locator("#plot-result canvas").count() == 1
        assert "rows." in page.locator("#said").inner_text()
        page.keyboard.press("Control+End")
        page.keyboard.type(" LIMIT 3")
        page.locator("#ask").click()
        page.wait_for_selector("body[data-asked='2']")
        assert page.locator("#result tbody tr").count() == 3
        assert page.locator("#history option").count() == 3
        for kind in ("csv", "json"):
            with page.expect_download() as download:
                page.locator(f"#{kind}").click()
            assert download.value.suggested_filename == f"query.{kind}"
            assert len(Path(download.value.path()).read_text().splitlines()) == (4 if kind == "csv" else 5)
        page.locator(".cm-content").click()
        page.keyboard.press("Control+a")
        page.keyboard.type("FROM read_text('/etc/passwd')")
        page.locator("#ask").click()
        page.wait_for_selector("body[data-asked='3']")
        assert "no files" in page.locator("#said").inner_text()
        # What a user types is completed from this run's own columns.
        page.locator(".cm-content").click()
        page.keyboard.press("Control+a")
        page.keyboard.type("SELECT a_servi")
        page.locator(".cm-tooltip-autocomplete li", has_text="a_service_s").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("Control+a")
        page.keyboard.type("SELECT count(*) FROM range(9999999) a, range(9999999) b WHERE a.range * b.range = 7")
        page.locator("#ask").click()
        page.locator("#cancel:enabled").click()
        page.wait_for_selector("body[data-asked='4']")
        assert page.locator("#said").inner_text() == "Cancelled."


def test_the_result_of_a_query_is_accessible(chromium: Any, app: Served) -> None:
    for theme in ("light", "dark"):
        for width in WIDTHS:
            with opened(chromium, app, width=width, theme=theme) as seen:
                go(seen, app, f"/sql/{RUN}?sql=FROM+a")
                seen.page.locator("#ask").click()
                seen.page.wait_for_selector("body[data-asked]")
                assert_nothing_found(seen.page, width, theme)


def test_words_that_differ_are_marked(chromium: Any, app: Served, lab: Lab) -> None:
    with duckdb.connect(str(lab.folder / DATABASE)) as connection:
        connection.execute("UPDATE a SET status = 'done', text = 'Parcel <b>seven</b> came on time.' WHERE row_id = 0")
    with opened(chromium, app) as seen:
        go(seen, app, f"/compare/lab/before?b={RUN}&stage=a")
        seen.page.wait_for_selector("body[data-compared]")
        pair = seen.page.locator("[data-diff]").first
        assert "late" in pair.locator("del").all_inner_texts()
        assert "on time" in " ".join(pair.locator("ins").all_inner_texts())
        assert "<b>" in pair.inner_text()


def test_a_live_run_follows_in_place(chromium: Any, lab: Lab, start_simulator: Callable[..., Simulator]) -> None:
    lab.rows(texts(40))
    run(lab, priced(start_simulator(latency_s=0.02, capacity=8).url))
    with going_on(lab.folder) as connection, served(lab.root / "outputs", every_s=0.1, figures_every_s=0.1) as app:
        assert_accessible(chromium, app, f"/overview/{RUN}", f"/rows/{RUN}", f"/failures/{RUN}")
        with opened(chromium, app) as seen:
            page = seen.page
            go(seen, app, f"/overview/{RUN}")
            page.wait_for_selector("body[data-events]")
            page.evaluate("window.stays = true")
            page.locator("figure details summary").first.click()
            page.locator("#table-rows table").wait_for()
            connection.execute("UPDATE a SET status = 'error', error_type = 'server', error = 'x' WHERE row_id < 7")
            page.locator("#part-tiles .bad", has_text="✕ 7").wait_for()
            page.locator("#part-graph svg", has_text="7 failed").first.wait_for()
            assert page.locator("figure .uplot canvas").count() >= 5
            assert page.locator("#table-rows table").count() == 1  # what was opened stays open
            assert page.evaluate("window.stays")  # the page itself is the same
            # A tab that nobody sees lets go of its connection.
            page.evaluate(
                "Object.defineProperty(document, 'hidden', { value: true, configurable: true });"
                "document.dispatchEvent(new Event('visibilitychange'))"
            )
            told = page.get_attribute("body", "data-events")
            connection.execute("UPDATE a SET status = 'error', error_type = 'server', error = 'x' WHERE row_id < 9")
            with opened(chromium, app) as other:
                go(other, app, f"/overview/{RUN}")
                other.page.locator("#part-tiles .bad", has_text="✕ 9").wait_for()
            assert page.get_attribute("body", "data-events") == told
            page.evaluate(
                "Object.defineProperty(document, 'hidden', { value: false, configurable: true });"
                "document.dispatchEvent(new Event('visibilitychange'))"
            )
            page.locator("#part-tiles .bad", has_text="✕ 9").wait_for()


def test_hostile_rows(chromium: Any, lab: Lab, simulator: Simulator) -> None:
    rows = [{"n": number, "text": text.replace("\x00", ""), "k<b>ey": text} for number, text in enumerate(HOSTILE)]
    rows.append({"n": 99, "text": "data:image/svg+xml,<svg onload='window.hacked=1'/>", "k<b>ey": "x" * 5_000_000})
    lab.rows(rows)
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
        connection.execute("UPDATE run SET experiment = ?, git_revision = ?", [HOSTILE[0], HOSTILE[1]])
    with served(lab.root / "outputs") as app:
        paths = [f"/{view}/{RUN}" for view in ("overview", "failures", "rows", "row/1", "row/9")]
        assert_accessible(chromium, app, "/", *paths)
        with opened(chromium, app) as seen:
            for path in ["/", *paths, *(f"/row/{number}/{RUN}" for number in range(len(HOSTILE)))]:
                go(seen, app, path)
                for details in seen.page.locator("details").all():
                    details.evaluate("details => { details.open = true; }")
                assert (
                    seen.page.locator("iframe, base, object, main img:not(.media), main script:not([type])").count()
                    == 0
                )
            go(seen, app, f"/rows/{RUN}")
            told = seen.page.locator("body").inner_text()
            for text in HOSTILE[:5]:
                assert text in told
            go(seen, app, f"/sql/{RUN}?sql=SELECT+*+FROM+results")
            seen.page.locator("#ask").click()
            seen.page.wait_for_selector("body[data-asked]")
            assert HOSTILE[0] in seen.page.locator("#result").inner_text()
            assert seen.page.locator("#result").locator("img, script, svg, iframe").count() == 0


def test_a_sweep(chromium: Any, lab: Lab, start_simulator: Callable[..., Simulator]) -> None:
    write_experiment(lab.root, priced(start_simulator(latency_s=0.02).url), "mine")
    lab.rows(texts(20))
    key = "stages.a.max_parallel_requests"
    ran = infermesh("run", "-m", "mine", f"{key}=1,2,4", "hydra.sweep.dir=outputs/s", cwd=lab.root)
    assert ran.returncode == 0, ran.stderr
    with served(lab.root / "outputs") as app:
        assert_accessible(chromium, app, "/sweep/s", "/?q=s")
        with opened(chromium, app) as seen:
            go(seen, app, "/sweep/s")
            assert seen.page.locator("figure .uplot canvas").count() == 2
            seen.page.keyboard.press("j")
            seen.page.keyboard.press("Enter")
            seen.page.wait_for_url("**/overview/s/0")
