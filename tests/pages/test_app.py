"""The app's pages over HTTP: what they say is what the tables say, and what they are asked reads and no more."""

from __future__ import annotations

import base64
import csv
import http.client
import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.pages.app import runs as run_handlers
from infermesh.pages.app import sql as sql_handlers
from infermesh.query import row_page
from infermesh.query.closed_run import ClosedRun
from infermesh.simulator import Simulator, SimulatorSettings
from infermesh.store.schema import DATABASE
from tests.pages.serving import Served, going_on, served
from tests.support import Lab, ask, embed, experiment, generate, texts, wait_until, wav

RUN = "lab/run"
ROWS = 130
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \u202e {{ 7 * 7 }} & \"q\" 'x'"


def picture() -> bytes:
    """A PNG of one pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A run of 130 rows and two stages, with failures; and one of the same name before it."""
    root = tmp_path_factory.mktemp("app")
    (root / "pic.png").write_bytes(picture())
    (root / "clip.wav").write_bytes(wav("hello"))
    (root / "page.png").write_text("<script>alert(1)</script>")
    (root.parent / "outside.png").write_bytes(picture())
    rows: list[dict[str, Any]] = [{**row, "of": "abc"[row["n"] % 3], "file": None} for row in texts(ROWS)]
    for number, name in enumerate(("pic.png", "clip.wav", "page.png", "../outside.png", "http://example.org/x.png")):
        rows[number]["file"] = name
    rows[5]["file"] = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    rows[6]["file"] = "data:image/svg+xml;base64,PHN2Zy8+"
    rows[7]["text"] = None
    rows[8]["text"] = HOSTILE
    found = Lab(root)
    found.rows(rows)
    with Simulator(SimulatorSettings()) as simulator:
        stages = {"a": generate("{{ text.upper() }}", system="Be brief."), "b": embed("{{ a.text }}", where="n > 9")}
        mapping = experiment(simulator.url, stages, guards={"first_errors": None})
        mapping["deployments"]["d"] |= {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
        found.folder = root / "outputs" / "lab" / "before"
        found.run(mapping)
        found.folder = root / "outputs" / RUN
        found.run(mapping)
    with duckdb.connect(str(found.folder / DATABASE)) as connection:
        connection.execute("UPDATE a SET service_s = CASE WHEN row_id % 4 = 0 THEN NULL ELSE (row_id * 7) % 11 END")
        connection.execute("UPDATE a SET text = ? WHERE row_id = 20", [HOSTILE])
    return found


@pytest.fixture(scope="module")
def app(lab: Lab) -> Iterator[Served]:
    with served(lab.root / "outputs") as found:
        yield found


def numbers(app: Served, **query: str) -> list[int]:
    """The rows of all pages, by the links that lead from one to the next."""
    found: list[int] = []
    reply = app.get(f"/rows/{RUN}", **query)
    for _ in range(ROWS):
        assert reply.status == 200
        found += [int(text) for text in re.findall(r'<a data-item href="/row/(\d+)/', reply.text)]
        following = [at["href"] for tag, at in reply.read.elements if tag == "a" and at.get("rel") == "next"]
        if not following:
            return found
        reply = app.ask(str(following[0]))
    raise AssertionError("the pages do not end")


@pytest.mark.parametrize(
    ("query", "sql"),
    [
        ({}, "FROM source ORDER BY row_id"),
        ({"desc": "1"}, "FROM source ORDER BY row_id DESC"),
        ({"sort": "of"}, "FROM source ORDER BY of, row_id"),
        ({"sort": "text", "desc": "1"}, "FROM source ORDER BY text DESC NULLS LAST, row_id"),
        ({"sort": "a.service_s"}, "FROM a ORDER BY service_s NULLS LAST, row_id"),
        ({"sort": "a.service_s", "desc": "1"}, "FROM a ORDER BY service_s DESC NULLS LAST, row_id"),
        (
            {"sort": "a.service_s", "q": "number 1"},
            "FROM results WHERE text LIKE '%number 1%' ORDER BY a_service_s, row_id",
        ),
        (
            {"sort": "b.finished_at", "status.a": "done"},
            "FROM results WHERE a_status = 'done' ORDER BY b_finished_at, 1",
        ),
        ({"status.a": "error"}, "FROM a WHERE status = 'error' ORDER BY row_id"),
        ({"status.b": "skipped", "status.a": "done"}, "FROM results WHERE b_status = 'skipped' AND a_status = 'done'"),
        ({"kind.a": "input"}, "FROM a WHERE error_type = 'input' ORDER BY row_id"),
        ({"q": "NUMBER 12"}, "FROM source WHERE text LIKE '%number 12%' ORDER BY row_id"),
        ({"q": "alert(1)"}, "FROM results WHERE text LIKE '%alert(1)%' OR a_text LIKE '%alert(1)%' ORDER BY row_id"),
        ({"where": "n % 2 = 0 -- even"}, "FROM source WHERE n % 2 = 0 ORDER BY row_id"),
        ({"where": "a_service_s > 3 and of = 'a'"}, "FROM results WHERE a_service_s > 3 AND of = 'a' ORDER BY row_id"),
    ],
)
def test_pages_of_rows_have_each_row_once_in_its_order(
    app: Served, lab: Lab, query: dict[str, str], sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_page, "PAGE", 20)
    assert numbers(app, **query) == [row for (row,) in ask(lab.folder, f"SELECT row_id {sql}")] != []


def test_the_count_is_exact_up_to_its_bound(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{ROWS} rows." in app.get(f"/rows/{RUN}").read.said()
    monkeypatch.setattr(row_page, "MOST_COUNTED", 5)
    monkeypatch.setattr("infermesh.pages.app.rows.MOST_COUNTED", 5)
    assert "More than 5 rows." in app.get(f"/rows/{RUN}", **{"status.a": "done"}).read.said()
    assert f"{ROWS} rows." in app.get(f"/rows/{RUN}").read.said()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"where": "nothing = 1"}, "nothing"),
        ({"where": "true) OR (SELECT count(*) FROM read_text('/etc/passwd')) > (0"}, "no files"),
        ({"where": "true)); DROP TABLE a; SELECT ((1"}, "syntax error"),
        ({"where": "getenv('HOME') = ''"}, "getenv"),
        ({"sort": "a.nothing"}, "cannot be sorted by"),
        ({"sort": "n; drop"}, "cannot be sorted by"),
        ({"status.a": "gone"}, "no status 'gone'"),
        ({"status.c": "done"}, "no stage 'c'"),
        ({"of": "attempts"}, "no rows 'attempts'"),
        ({"after": "x"}, "cannot be read from it"),
        ({"after": base64.urlsafe_b64encode(b'[null, "1) OR (true", 1]').decode()}, "cannot be read from it"),
    ],
)
def test_what_cannot_be_asked_is_said_with_all_rows_below(app: Served, query: dict[str, str], said: str) -> None:
    reply = app.get(f"/rows/{RUN}", **query)
    assert said in reply.read.said()
    assert len(re.findall("<a data-item", reply.text)) == row_page.PAGE


def test_a_link_on_another_site_asks_no_condition(app: Served) -> None:
    address = f"/rows/{RUN}?where=n+%3D+3&q=number"
    reply = app.ask(address, Sec_Fetch_Site="cross-site")
    assert f"{ROWS} rows." in reply.read.said()
    assert "Press Show to ask it" in reply.read.said()
    assert "n = 3" in [at.get("value") for tag, at in reply.read.elements if tag == "input"]
    assert "1 row." in app.ask(address, Sec_Fetch_Site="same-origin").read.said()


def test_the_list_tells_each_run_and_what_changed(app: Served, lab: Lab) -> None:
    read = app.get("/").read
    assert "1 to 2 of 2 runs" in read.said()
    assert "finished, with failed rows" in read.said()
    (failed,) = ask(lab.folder, "SELECT count(*) FROM a WHERE status = 'error'")
    assert f"✕ {failed[0]}" in read.texts["td"]
    links = [at["href"] for tag, at in read.elements if tag == "a"]
    assert f"/compare/lab/before?b={RUN.replace('/', '%2F')}" in links
    assert "No run's folder has this" in app.get("/", q="nothing").read.said()
    assert "1 to 1 of 1 run," in app.get("/", q="BEFORE").read.said()


def test_the_overview_is_the_reports(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_handlers, "_PATIENCE_S", 20)
    whole = app.get(f"/overview/{RUN}")
    assert {"rows", "service", "cost"} <= whole.read.charts.keys()
    assert "data-later" not in whole.text
    assert f"infermesh report {app.app[run_handlers.RUNS].outputs}/{RUN}" in whole.read.said()


def test_an_overview_that_takes_long_is_sent_in_two_parts(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_handlers, "_PATIENCE_S", 20)
    whole = app.get(f"/overview/{RUN}").read
    monkeypatch.setattr("infermesh.pages.app.runs.asyncio.wait", _no_patience)
    app.app[run_handlers.OVERVIEWS]._known.clear()
    first = app.get(f"/overview/{RUN}")
    (later,) = re.findall(r'data-later="([^"]+)"', first.text)
    assert first.read.charts == {}
    assert first.read.texts["dd"][:7] == whole.texts["dd"][:7]
    rest = app.get(later).json
    assert rest["parts"].keys() == {"head", "tiles", "failed", "graph", "stages", "time", "deployments"}
    assert [chart["name"] for chart in rest["charts"]] == list(whole.charts)


async def _no_patience(tasks: Any, timeout: float) -> None:
    """Instead of ``asyncio.wait``: whatever it is, it takes longer. The task has not begun."""


def test_failures_lead_to_their_rows(app: Served, lab: Lab) -> None:
    read = app.get(f"/failures/{RUN}").read
    assert "✕ 1 row of a: input" in read.texts["h3"]
    (retry,) = [text for text in read.texts["pre"] if text.startswith("infermesh retry")]
    assert "--stage a --where" in retry
    (rows,) = [str(at["href"]) for tag, at in read.elements if tag == "a" and "kind.a=input" in str(at.get("href"))]
    assert re.findall('<a data-item href="/row/(\\d+)/', app.ask(rows).text) == ["7"]


def test_a_rows_story(app: Served, lab: Lab) -> None:
    read = app.get(f"/row/20/{RUN}").read
    said = read.said()
    assert "PARCEL NUMBER 20 CAME LATE." in said
    assert "Be brief." in said
    assert "as it was sent" in said
    assert HOSTILE.replace("\u202e", "\ufffd").split(" {{")[0] in said
    assert " 49 " not in said
    raw = app.get(f"/api/row/20/{RUN}")
    assert raw.headers["Content-Disposition"] == 'attachment; filename="row-20.json"'
    story = json.loads(raw.body)
    assert story["stages"]["a"]["outputs"]["text"] == HOSTILE
    assert story["columns"]["text"] == "Parcel number 20 came late."
    assert [at["href"] for tag, at in read.elements if tag == "a" and at.get("rel")] == [
        f"/row/19/{RUN}",
        f"/row/21/{RUN}",
    ]
    assert "nothing was sent" not in said
    assert "✕ input" in app.get(f"/row/7/{RUN}").read.said()


@pytest.mark.parametrize("number", ["130", "-1", "x", "1" * 30])
def test_a_row_that_is_not_there(app: Served, number: str) -> None:
    assert "✕ " in app.get(f"/row/{number}/{RUN}").read.said()
    assert app.get(f"/api/row/{number}/{RUN}").status == 404


def test_pictures_and_sounds_of_a_row_are_shown_and_nothing_else(app: Served) -> None:
    def media(row: int) -> list[str]:
        elements = app.get(f"/row/{row}/{RUN}").read.elements
        return [str(at["src"]) for tag, at in elements if tag in ("img", "audio", "video")]

    (png,), (wave,) = media(0), media(1)
    reply = app.ask(png)
    assert (reply.status, reply.headers["Content-Type"], reply.body) == (200, "image/png", picture())
    assert "sandbox" in reply.headers["Content-Security-Policy"]
    assert app.ask(wave).headers["Content-Type"] == "audio/wav"
    for row, why in ((2, "no picture"), (3, "no folder that rows may name")):
        (address,) = media(row)
        reply = app.ask(address)
        assert reply.status == 404
        assert why in reply.text
    assert media(4) == []  # nothing is fetched from elsewhere
    assert media(5)[0].startswith("data:image/png;base64,")
    assert media(6) == []
    assert app.get(f"/api/media/0/{RUN}", column="nothing").status == 404
    assert app.get(f"/api/media/0/{RUN}", column="text", of="attempts").status == 404


REFUSED = [
    ("COPY a TO '{file}'", "COPY"),
    ("COPY (SELECT 1) TO '{file}'", "COPY"),
    ("EXPORT DATABASE '{file}'", "EXPORT"),
    ("ATTACH '{file}' AS x", "ATTACH"),
    ("SET threads = 3", "SET"),
    ("RESET lock_configuration", "SET"),
    ("PRAGMA enable_profiling", "PRAGMA"),
    ("INSTALL httpfs", ""),
    ("LOAD json", "LOAD"),
    ("DELETE FROM a", "DELETE"),
    ("DROP TABLE a", "DROP"),
    ("CREATE TEMP TABLE x AS SELECT 1", "CREATE"),
    ("USE memory", ""),
    ("DETACH of_the_run", "DETACH"),
    ("CALL enable_logging()", "CALL"),
    ("SELECT 1; SELECT 2", "SELECT, SELECT"),
    ("", "nothing"),
    ("-- nothing", "nothing"),
    ("SELECT * FROM read_text('/etc/passwd')", "no files"),
    ("SELECT * FROM read_csv('/etc/passwd')", "no files"),
    ("FROM '/etc/passwd'", ""),
    ("FROM '{database}'", ""),
    ("SELECT * FROM glob('/*')", "no files"),
    ("SELECT (SELECT max(content) FROM read_text('/etc/passwd'))", "no files"),
    ("EXPLAIN ANALYZE SELECT * FROM read_text('/etc/passwd')", "no files"),
    ("EXPLAIN ANALYZE COPY a TO '{file}'", ""),
    ("FROM query('COPY a TO ''{file}''')", ""),
    ("FROM query('FROM read_text(''/etc/passwd'')')", "no files"),
    ("FROM query_table('/etc/passwd')", ""),
    ("FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''/etc/passwd'')'))", ""),
    ("FROM force_checkpoint()", ""),
]


@pytest.mark.parametrize("live", [False, True])
def test_the_sql_box_reads_the_run_and_nothing_else(app: Served, lab: Lab, tmp_path: Path, live: bool) -> None:
    before = lab.root / "outputs" / "lab" / "before"
    run = "lab/before"

    def check() -> None:
        for query, said in REFUSED:
            sql = query.format(file=tmp_path / "out", database=lab.folder / DATABASE)
            found = app.sql(run, sql)
            if sql == "FROM force_checkpoint()" and not live:
                continue  # of the empty database in memory
            assert "error" in found, sql
            assert said in found["error"], sql
            exported = app.get(f"/api/export/{run}", sql=sql)
            assert exported.status == 400, sql
        assert app.sql(run, "SELECT count(*) AS n FROM a")["rows"] == [[str(ROWS)]]
        assert list(tmp_path.iterdir()) == []

    if not live:
        check()
        return
    with going_on(before):
        check()


def test_the_sql_box_gives_texts_and_says_what_it_leaves_out(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    found = app.sql(RUN, "SELECT row_id, NULL AS nothing, 2::HUGEINT ** 70 AS big, [1.5] AS l, text FROM a ORDER BY 1;")
    assert [column["name"] for column in found["columns"]] == ["row_id", "nothing", "big", "l", "text"]
    assert found["columns"][0]["type"] == "BIGINT"
    assert found["rows"][20][:2] == ["20", None]
    assert found["rows"][20][4] == HOSTILE.replace("\u202e", "\ufffd")
    assert (len(found["rows"]), found["more"]) == (ROWS, False)
    monkeypatch.setattr(sql_handlers, "MOST_ROWS", 7)
    found = app.sql(RUN, "FROM a")
    assert (len(found["rows"]), found["more"]) == (7, True)
    assert len(app.sql(RUN, "SELECT repeat('x', 5000000)")["rows"][0][0]) == 2001
    for query in ("SUMMARIZE a", "DESCRIBE a", "SHOW TABLES", "WITH x AS (SELECT 1) FROM x", "VALUES (1)", "TABLE a"):
        assert app.sql(RUN, query)["rows"], query
    assert "Scan" in app.sql(RUN, "EXPLAIN FROM a")["rows"][0][0]
    assert app.ask(f"/api/sql/{RUN}", "POST", b"{").status == 400
    assert app.ask(f"/api/sql/{RUN}", "POST", b'{"sql": 1}').status == 400
    assert app.sql(RUN, "SELECT 1", check=True) == {}
    assert "error" in app.sql(RUN, "SELECT nothing", check=True)


LONG = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range = 7"


def test_a_query_that_takes_too_long_is_ended(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_handlers, "TIME_S", 0.2)
    assert app.sql(RUN, LONG)["error"] == "the query took longer than 0.2 s: ask for less"
    monkeypatch.setattr(row_page, "TIME_S", 0.2)
    assert "took longer than 0.2 s" in app.get(f"/rows/{RUN}", where=f"({LONG}) = n").read.said()


def test_a_query_that_nobody_waits_for_is_ended(app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_handlers, "TIME_S", 600.0)
    began: list[Any] = []
    ended: list[Any] = []
    run_ask = ClosedRun.ask

    def asked(run: Any, *given: Any, **more: Any) -> Any:
        began.append(run)
        try:
            return run_ask(run, *given, **more)
        finally:
            ended.append(run)

    monkeypatch.setattr(ClosedRun, "ask", asked)
    connection = http.client.HTTPConnection("127.0.0.1", app.access.port)
    cookie = {"Cookie": f"{app.access.cookie}={app.access.session}"}
    connection.request("POST", f"/api/sql/{RUN}", json.dumps({"sql": LONG}), cookie)
    wait_until(lambda: began, "the query")
    connection.close()
    wait_until(lambda: ended, "its end")


def test_a_file_has_all_rows(app: Served, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_handlers, "MOST_ROWS", 7)
    query = "SELECT row_id, text, NULL AS nothing FROM a ORDER BY row_id"
    rows = ask(lab.folder, query)
    found = list(csv.reader(io.StringIO(app.get(f"/api/export/{RUN}", sql=query).body.decode(), newline="")))
    assert found == [["row_id", "text", "nothing"], *([str(row), text or "", ""] for row, text, _ in rows)]
    reply = app.get(f"/api/export/{RUN}", sql=query, format="json")
    assert reply.json == [{"row_id": row, "text": text, "nothing": None} for row, text, _ in rows]
    assert reply.headers["Content-Disposition"] == 'attachment; filename="query.json"'
    assert app.get(f"/api/export/{RUN}", sql="FROM a WHERE false", format="json").json == []
    assert app.get(f"/api/export/{RUN}", sql=query, format="exe").status == 400


def test_two_runs_side_by_side(app: Served) -> None:
    assert "choose a run" in app.get(f"/compare/{RUN}").read.said()
    reply = app.get(f"/compare/{RUN}", b="lab/before")
    assert "1 row." in reply.read.said()
    assert HOSTILE.replace("\u202e", "\ufffd").split(" {{")[0] in " ".join(reply.read.texts["div"])
    assert not {"ins", "del", "img"} & {tag for tag, _ in reply.read.elements}
    assert "no stage 'x' in both runs" in app.get(f"/compare/{RUN}", b="lab/before", stage="x").read.said()
    assert app.get(f"/compare/{RUN}", b="../x").status == 404


def test_hostile_rows_are_texts_on_every_page(app: Served) -> None:
    for path in (f"/rows/{RUN}", f"/row/8/{RUN}", f"/row/20/{RUN}", f"/failures/{RUN}", f"/overview/{RUN}"):
        reply = app.ask(path)
        tags = [tag for tag, at in reply.read.elements if at.get("class") != "media"]
        assert not {"img", "iframe", "object"} & set(tags), path
        nonce = re.findall("'nonce-([\\w-]+)'", reply.headers["Content-Security-Policy"])[0]
        for tag, at in reply.read.elements:
            if tag == "script":
                assert at.get("nonce") == nonce or at.get("type") == "application/json", path
        assert "\u202e" not in reply.text


def test_a_run_that_cannot_be_read_says_so(app: Served, lab: Lab) -> None:
    broken = lab.root / "outputs" / "broken" / "run"
    broken.mkdir(parents=True)
    (broken / DATABASE).write_bytes(b"no database" * 2000)
    for view in ("overview", "failures", "rows", "sql"):
        assert "cannot be" in app.get(f"/{view}/broken/run").read.said()
    assert "damaged" in app.get("/", q="broken").read.said()
    assert "error" in app.sql("broken/run", "SELECT 1")
    assert app.get("/row/0/broken/run").status == 200
