"""A run's page: what it says is what the tables say, whatever the rows hold."""

from __future__ import annotations

import re
import shlex
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import pytest

from infermesh.pages.run import MOST_BYTES, REPORT, run_page, write_report
from infermesh.query import percentile
from infermesh.query.overview import read_overview
from infermesh.simulator import Simulator
from infermesh.store.schema import DATABASE
from tests.pages.reading import Read, assert_closed
from tests.support import Lab, Watch, embed, experiment, generate, here, texts, write_experiment

PRICES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> \u2028\u202e {{ 7 * 7 }} & \"q\" 'x'"

FAILED_REQUESTS = (  # one more for each row of a stage: deployment, error_type, error
    "INSERT INTO attempts_log SELECT '{stage}', row_id, 9, ?, finished_at, 0, 0, 500, ?, 1, 1, 0, 1, ?, NULL "
    "FROM {stage}"
)


def read(folder: Path) -> Read:
    return assert_closed((folder / REPORT).read_text(encoding="utf-8"))


def tiles(page: Read) -> dict[str, str]:
    """The numbers at the top of the page."""
    names, values = page.texts["dt"], page.texts["dd"]
    return dict(zip(names[:8], values[:8], strict=True))


def two_stages(url: str, **sections: Any) -> dict[str, Any]:
    mapping = experiment(url, {"a": generate(), "b": embed("{{ a.text }}", where="n > 0")}, report=True, **sections)
    mapping["deployments"]["d"] |= PRICES
    return mapping


def test_the_numbers_are_those_of_the_tables(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(30))
    outcome = lab.run(two_stages(simulator.url))
    assert outcome.report == lab.folder / REPORT
    page = read(lab.folder)
    ((requests, tokens, cost),) = lab.sql(
        "SELECT count(*), sum(prompt_tokens + coalesce(completion_tokens, 0))::BIGINT, sum(cost_usd) FROM attempts"
    )
    seconds = lab.one("SELECT sum(elapsed_s) FROM sessions")
    assert tiles(page) == {
        "rows of the source": "30",
        "results done": "59",
        "failed": "0",
        "pending": "0",
        "requests": f"{requests:,}",
        "tokens": f"{tokens:,}",
        "cost": f"${cost:.4f}",
        "duration": tiles(page)["duration"],
    }
    number, unit = tiles(page)["duration"].split()
    assert float(number) * {"ms": 1e-3, "s": 1}[unit] == pytest.approx(seconds, abs=0.006)
    assert "✓ complete" in page.said()
    assert "✓ No row has failed." in page.said()
    rates = page.charts["rows"]
    width = 2 * rates["x"][0]
    drawn = {line["label"]: sum(value or 0 for value in line["values"]) * width for line in rates["series"]}
    assert drawn == pytest.approx({"a": 30, "b": 29}, rel=1e-3)
    assert page.charts["cost"]["series"][0]["values"][-1] == pytest.approx(cost, rel=1e-4)
    label = next(at["aria-label"] for tag, at in page.elements if tag == "svg")
    assert label == "The stages and what they read: a reads source; b reads a"


def test_failures_have_a_command_that_tries_them_again(lab: Lab, simulator: Simulator) -> None:
    write_experiment(lab.root, two_stages(simulator.url, guards={"first_errors": None}), "lab")
    rows = [{"n": n, "text": None if n % 3 else f"text {n}"} for n in range(12)]
    lab.rows(rows)
    mapping = two_stages(simulator.url, guards={"first_errors": None})
    mapping["stages"]["a"]["prompt"] = "{{ text.upper() }}"
    outcome = lab.run(mapping)
    assert outcome.exit_code == 3
    page = read(lab.folder)
    assert tiles(page)["failed"] == "✕ 8"
    assert "✕ finished, with failed rows" in page.said()
    assert "✕ 8 rows of a: input" in page.texts["h3"]
    assert "nothing was sent" in page.said()
    (retry,) = [text for text in page.texts["pre"] if text.startswith("infermesh retry")]
    words = shlex.split(retry)[1:]
    done = here(*words, "--dry-run", cwd=lab.root)
    assert done.returncode == 0, done.stderr
    assert "8 rows of a where error_type = 'input'" in done.stderr


def test_messages_that_differ_in_numbers_alone_are_one(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(6))
    lab.run(two_stages(simulator.url))
    with duckdb.connect(str(lab.folder / DATABASE)) as connection:
        connection.execute(
            "UPDATE a SET status = 'error', error_type = 'server', error = 'row ' || row_id || ' is bad'"
        )
        connection.execute("UPDATE a SET error = 'another' WHERE row_id = 5")
    overview = read_overview(lab.folder)
    found = [(each.stage, each.kind, each.count, each.example, each.rows) for each in overview.failures]
    assert [(*each[:3], *each[4:]) for each in found] == [("a", "server", 5, (0, 1, 2)), ("a", "server", 1, (5,))]
    assert re.fullmatch(r"row \d is bad", found[0][3])
    assert found[1][3] == "another"
    assert "✕ 6 rows of a: server" in Read(run_page(overview)).texts["h3"]


def test_hostile_rows_and_answers_are_texts(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"n": n, "text": HOSTILE, HOSTILE.replace(".", ""): HOSTILE} for n in range(1, 4)])
    lab.run(two_stages(simulator.url))
    with duckdb.connect(str(lab.folder / DATABASE)) as connection:
        connection.execute("UPDATE a SET text = ?", [HOSTILE])
        connection.execute("UPDATE b SET status = 'error', error_type = ?, error = ?", [HOSTILE, HOSTILE])
        connection.execute(FAILED_REQUESTS.format(stage="a"), [HOSTILE] * 3)
    write_report(lab.folder)
    page = read(lab.folder)
    shown = HOSTILE.replace("\u202e", "\ufffd")  # it would turn the line around
    assert page.texts["span"].count(shown) >= 9
    assert not {"img", "alert"} & {tag for tag, _ in page.elements}
    assert "49" not in [text.strip() for text in page.texts["span"]]
    retry = next(text for text in page.texts["pre"] if text.startswith("infermesh retry"))
    assert shlex.split(retry)[-1] == f"error_type = '{shown}'".replace("'x''", "''x'''")


def test_long_rows_make_no_long_page(lab: Lab, simulator: Simulator) -> None:
    lab.rows([{"n": n, "text": f"{n}", "long": "<" * 1_000_000} for n in range(1, 30)])
    lab.run(two_stages(simulator.url))
    text = (lab.folder / REPORT).read_bytes()
    assert len(text) < 500_000
    assert "(1,000,000 characters)" in read(lab.folder).said()


def test_a_page_that_is_too_long_shows_less_and_says_so(lab: Lab, simulator: Simulator) -> None:
    wide = {f"c{number}": "<" * 2000 for number in range(12)}
    lab.rows([{"text": f"{n}", **wide, "n": n} for n in range(40)])
    mapping = two_stages(simulator.url)
    columns = {f"v{number}": "VARCHAR" for number in range(12)}
    for name in ("p", "q", "r", "s"):
        mapping["stages"][name] = {"kind": "python", "function": "tests.functions:wide_values", "columns": columns}
    lab.run(mapping)
    text = (lab.folder / REPORT).read_bytes()
    assert len(text) < MOST_BYTES
    page = read(lab.folder)
    assert "fewer and shorter than usual, to keep this page small" in page.said()
    assert "2 columns of theirs left out" in page.said()


def test_a_run_may_go_without(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2))
    outcome = lab.run(two_stages(simulator.url) | {"report": False})
    assert outcome.report is None
    assert not (lab.folder / REPORT).exists()


def test_a_page_that_cannot_be_written_fails_nothing(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2))
    (lab.folder / f".{REPORT}.part").mkdir(parents=True)
    watch = Watch()
    outcome = lab.run(two_stages(simulator.url), watch=watch)
    assert outcome.exit_code == 0
    assert outcome.report is None
    (note,) = [note for note in watch.notes if "report.html" in note]
    assert note.startswith("no report.html was written: ")
    assert note.endswith(f"infermesh report {lab.folder}")


def test_a_resumed_run_has_both_sessions(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(3))
    lab.run(two_stages(simulator.url))
    lab.rows(texts(6))
    lab.run(two_stages(simulator.url))
    page = read(lab.folder)
    assert "2 sessions, without pauses" in page.said()
    assert page.charts["rows"]["marks"][0]["label"] == "session 2"


def test_what_makes_the_graph(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(4))
    mapping = experiment(simulator.url, {"a": generate(), "c": generate("{{ text }} {{ a.text }}"), "d": generate()})
    # SQL has no case; and a name that is no table's is not read.
    query = "select s.n, A.text as d from Source s join A using (row_id) where n > 1 and 'c' <> 'd'"
    mapping["stages"]["q"] = {"kind": "sql", "query": query}
    mapping["stages"]["e"] = {**generate("{{ n }}"), "model": "m", "rows": "q"}
    mapping["stages"]["f"] = {**generate(where="a.text is not null"), "model": "m"}
    lab.run(mapping | {"report": True})
    label = next(at["aria-label"] or "" for tag, at in read(lab.folder).elements if tag == "svg")
    assert set(label.partition(": ")[2].split("; ")) == {
        "a reads source",
        "c reads a",
        "d reads source",
        "q reads source, a",
        "e reads q",
        "f reads a",
    }
    assert any("of q, evenly spread" in text for text in read(lab.folder).texts["p"])


def test_limits_history_is_shown_where_there_is_one(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(2))
    lab.run(two_stages(simulator.url))
    with duckdb.connect(str(lab.folder / DATABASE)) as connection:
        connection.execute("CREATE TABLE limits_history (changed_at TIMESTAMP, deployment VARCHAR, rpm DOUBLE)")
        connection.execute("INSERT INTO limits_history VALUES ('2026-01-01', 'd', 600.5), ('2026-01-02', NULL, 7)")
    write_report(lab.folder)
    page = read(lab.folder)
    assert {"600.5", "2026-01-01 00:00:00"} <= set(page.texts["td"])
    assert "deployment" in page.texts["th"]


def test_the_page_of_a_folder_without_a_run(tmp_path: Path) -> None:
    duckdb.connect(str(tmp_path / DATABASE)).close()
    write_report(tmp_path)
    assert "empty: it ended before its source was loaded" in read(tmp_path).said()


def test_the_command(lab: Lab, simulator: Simulator) -> None:
    write_experiment(lab.root, two_stages(simulator.url), "mine")
    lab.rows(texts(2))
    ran = here("run", "mine", "models.m.max_retries=1", "hydra.run.dir=outputs/mine/r", cwd=lab.root)
    assert ran.returncode == 0, ran.stderr
    assert "  report    outputs/mine/r/report.html\n" in ran.stderr
    done = here("report", "outputs/mine/r", "--output", "other.html", cwd=lab.root)
    assert (done.returncode, done.stdout) == (0, "other.html\n"), done.stderr
    page = assert_closed((lab.root / "other.html").read_text(encoding="utf-8"))
    assert "infermesh run +experiment=mine ++models.m.max_retries=1" in page.texts["pre"]
    assert here("report", cwd=lab.root).stdout == "outputs/mine/r/report.html\n"
    for words, message in (
        (("report", "nope"), "no run 'nope'"),
        (("report", "-o", "conf"), "--output conf is a folder: name a file in it, such as conf/report.html"),
        (("report", "-o", "no/such/folder.html"), "no/such/folder.html: no such file or directory: look at the path"),
        (("report", "outputs/mine"), "a page is of one run or sweep: infermesh report outputs/mine/r"),
    ):
        refused = here(*words, cwd=lab.root)
        assert refused.returncode != 0
        assert message in refused.stderr


def test_runs_of_an_older_version(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).parents[1] / "runs" / "stored_0_1" / "runs.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    for name, state in (("complete", "✓ complete"), ("killed", "✕ killed")):
        write_report(tmp_path / name)
        page = read(tmp_path / name)
        assert state in page.said()
        assert page.charts["rows"]["series"]


def test_the_percentiles_of_very_many_requests_are_estimates(
    lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.rows(texts(30))
    lab.run(two_stages(simulator.url))
    words = "The percentiles of so many requests are estimates."
    assert words not in read(lab.folder).said()
    exact = read_overview(lab.folder)
    monkeypatch.setattr(percentile, "MOST_EXACT", 10)
    write_report(lab.folder)
    assert words in read(lab.folder).said()
    estimated = read_overview(lab.folder)
    for before, after in zip(exact.calls, estimated.calls, strict=True):
        assert after.service_p95 == pytest.approx(before.service_p95, rel=0.5)


def test_what_nobody_foresaw_is_in_the_log(lab: Lab, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infermesh.pages.run.charts", lambda overview: 1 / 0)
    lab.rows(texts(2))
    watch = Watch()
    outcome = lab.run(two_stages(simulator.url), watch=watch)
    assert (outcome.exit_code, outcome.report) == (0, None)
    assert any(note.startswith("no report.html was written: division by zero") for note in watch.notes)
    assert "ZeroDivisionError" in (lab.folder / "run.log").read_text()


def test_what_went_through_batches_is_told(lab: Lab, simulator: Simulator) -> None:
    lab.rows(texts(30))
    mapping = experiment(simulator.url, {"a": generate()}, report=True)
    batch = {"enabled": True, "poll": 0.02, "max_requests": 20}
    mapping["deployments"] = {"d": {"model": "openai/gpt-4.1-mini", "api_base": simulator.url, "batch": batch}}
    lab.run(mapping, environ={"OPENAI_API_KEY": "sk-of-nobody"})
    assert "Batches: 30 requests answered for $" in read(lab.folder).said()
    assert "not back yet" not in read(lab.folder).said()
    with duckdb.connect(str(lab.folder / DATABASE)) as connection:
        connection.execute("UPDATE batches SET state = 'submitted' WHERE requests = 10")
        connection.execute("UPDATE run SET status = 'waiting'")
    write_report(lab.folder)
    assert "1 batch of 10 requests at d, not back yet." in read(lab.folder).said()
    assert "… waits for its batches" in read(lab.folder).said()
