"""The benchmarks' own machinery: that it counts right, and that every script still fits what it measures. No timing."""

from __future__ import annotations

import importlib
import json
import math
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as whole
from benchmarks import harness, images, live, plan, profile, store, tls
from benchmarks.__main__ import SCRIPTS, page
from benchmarks.endpoint import ANSWER, Arrivals, arrivals, static_endpoint, tls_endpoint, watching_endpoint
from benchmarks.harness import (
    BARE,
    Result,
    Target,
    dump,
    isolated,
    markdown,
    parse,
    rate_rows,
    ratio,
    rounds,
    table,
    targets_table,
)
from benchmarks.inflight import steady
from benchmarks.jobs import LagProbe, ended, experiment, launch, peak_rss, run_once
from benchmarks.loops import WAYS, prompts, timed
from benchmarks.machine import describe
from infermesh.config.load import load


def result(**fields: Any) -> Result:
    targets = [
        Target("fast enough", 0.7, 0.65),
        Target("late by", 34.56, 20, "ms", at_least=False),
        Target("states", 72_941.2, 30_000),
    ]
    return Result("store", "The store", "Ten of them.", ["", "states/s"], [["writer", "72,941"]], targets, **fields)


def test_ways_take_turns() -> None:
    turns: list[str] = []

    def way(name: str) -> int:
        turns.append(name)
        return len(turns)

    found = rounds(2, {"a": partial(way, "a"), "b": partial(way, "b")})
    assert turns == ["a", "b", "a", "b"]
    assert found == {"a": [1, 3], "b": [2, 4]}


def test_a_ratio_is_the_median_of_each_rounds_own() -> None:
    # In the second round the whole machine was slow: the ratio of the medians would be 1.5 / 3.
    assert ratio([1.0, 9.0, 1.5], [4.0, 12.0, 3.0]) == 0.5
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0], [1.0, 2.0])


def test_rates_come_from_the_median_and_ratios_from_the_rounds() -> None:
    rows = rate_rows({BARE: [0.0001, 0.0001, 0.0009], "client": [0.0002, 0.0002, 0.0009]})
    assert rows == [[BARE, "10,000", "100.0", "1.00"], ["client", "5,000", "200.0", "0.50"]]


@pytest.mark.parametrize(
    ("target", "promise", "came_to", "met"),
    [
        (Target("x", 0.651, 0.65), "≥ 0.65", "0.651", True),
        (Target("x", 0.649, 0.65), "≥ 0.65", "0.649", False),
        (Target("x", 20.0, 20, "ms", at_least=False), "≤ 20 ms", "20 ms", True),
        (Target("x", 151.4, 150, "MB", at_least=False), "≤ 150 MB", "151 MB", False),
        (Target("x", 72_941.2, 30_000), "≥ 30,000", "72,941", True),
    ],
)
def test_a_target_says_what_was_promised_and_what_came(target: Target, promise: str, came_to: str, met: bool) -> None:
    assert (target.promise, target.came_to, target.met) == (promise, came_to, met)


def test_tables_are_markdown_and_line_up() -> None:
    assert table(["", "requests/s"], [["bare", "8"], ["a client", "10,000"]]).splitlines() == [
        "|          | requests/s |",
        "| -------- | ---------: |",
        "| bare     |          8 |",
        "| a client |     10,000 |",
    ]
    assert table(["machine", ""], [["CPU", "two"]], numbers=False).splitlines()[1:] == [
        "| ------- | --- |",
        "| CPU     | two |",
    ]


def test_a_section_has_the_command_the_numbers_and_the_targets() -> None:
    text = markdown(result(notes=["And so on."]))
    assert text.startswith("## The store\n\nTen of them.\n\n    python -m benchmarks.store\n")
    assert "| writer |   72,941 |" in text
    assert [line.split("|")[-2].strip() for line in targets_table([result()]).splitlines()[2:]] == [
        "yes",
        "**no**",
        "yes",
    ]
    assert "34.6 ms" in text
    assert text.endswith("And so on.\n")
    assert "python -m benchmarks.store --quick\n" in markdown(result(quick=True))


def test_a_record_survives_the_way_to_the_page() -> None:
    before = result(notes=["A note."], quick=True, took_s=1.5)
    assert parse(dump(before)) == before


def test_the_page_describes_the_machine_and_holds_every_section() -> None:
    machine = describe()
    labels = [label for label, _ in machine]
    assert {"date", "CPU", "Python", "packages", "operating system"} <= set(labels)
    assert "duckdb 2" in dict(machine)["packages"]
    text = page([result()], machine, 120.0)
    assert "took 2 minutes" in text
    assert text.index("| CPU ") < text.index("## Targets") < text.index("## The store")
    assert "small sizes (`--quick`): these" not in text
    assert "small sizes (`--quick`): these" in page([result()], machine, 120.0, quick=True)


def test_every_script_is_on_the_page() -> None:
    folder = Path(store.__file__).parent
    runnable = {path.stem for path in folder.glob("*.py") if "\n    script(measure)\n" in path.read_text()}
    assert runnable == set(SCRIPTS)
    for name in SCRIPTS:
        module = importlib.import_module(f"benchmarks.{name}")
        assert f"`python -m benchmarks.{name}`" in (module.__doc__ or "").partition("\n")[0]


def test_arrivals_fall_into_buckets() -> None:
    seen = Arrivals(first=10.0, last=10.49, counts={1000: 5, 1009: 1, 1010: 2, 1025: 3, 1049: 9})
    assert seen.total == 20
    assert seen.buckets(10.0, 10.3, 0.1) == [6, 2, 3]
    assert seen.buckets(10.0, 10.05, 0.1) == []


def test_the_steady_part_is_what_comes_after_the_start() -> None:
    counts = {100: 400} | dict.fromkeys(range(200, 500), 3)  # a burst, a pause, and then an even 3 in 10 ms
    seen = Arrivals(first=1.0, last=5.0, counts=counts)
    found = steady(seen, requests=1300, laps=6, width_s=0.1)
    assert set(found) == {30}
    with pytest.raises(RuntimeError, match="before it was steady"):
        steady(Arrivals(1.0, 1.0, {100: 900}), requests=900, laps=6, width_s=0.1)


def test_the_probe_ranks_what_it_saw() -> None:
    probe = LagProbe()
    probe.late_s = [0.001] * 998 + [0.05, 0.004]
    assert probe.summary() == pytest.approx({"median_ms": 1.0, "p999_ms": 4.0, "worst_ms": 50.0})
    assert LagProbe().summary() == {"median_ms": 0.0, "p999_ms": 0.0, "worst_ms": 0.0}


def test_a_function_runs_in_a_process_of_its_own() -> None:
    assert isolated(prompts, count=2) == prompts(2)


def _post(url: str) -> Any:
    request = urllib.request.Request(f"{url}/chat/completions", data=b'{"model": "m"}', method="POST")
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_the_static_endpoint_answers() -> None:
    with static_endpoint() as url:
        assert _post(url) == json.loads(ANSWER)


def test_the_watching_endpoint_answers_late_and_tells_when_it_was_asked() -> None:
    with watching_endpoint(delay_s=0.02, spread_s=0.01) as url:
        assert arrivals(url).total == 0
        assert _post(url) == _post(url) == json.loads(ANSWER)
        seen = arrivals(url)
        assert seen.total == 2
        assert seen.last - seen.first >= 0.01
        assert arrivals(url).total == 0


WITHOUT_YARDSTICK = find_spec("pyreqwest") is None
NO_YARDSTICK = pytest.mark.skipif(WITHOUT_YARDSTICK, reason="pyreqwest comes with the extra 'benchmarks'")


@pytest.mark.parametrize("way", [pytest.param(BARE, marks=NO_YARDSTICK), "bare aiohttp loop", "generate_batch"])
def test_ways_are_counted_as_done(way: str) -> None:
    with watching_endpoint() as url:
        assert timed(way, url, requests=30, window=4)["seconds"] > 0
        assert arrivals(url).total == 30 + 30  # as many warm it up


@pytest.mark.skipif(not WITHOUT_YARDSTICK, reason="pyreqwest is there")
def test_a_missing_yardstick_is_said() -> None:
    with pytest.raises(SystemExit, match="benchmarks"):
        timed(BARE, "http://127.0.0.1:9", requests=1, window=1)


@pytest.mark.parametrize("nginx", [True, False])
@pytest.mark.long
def test_ways_over_tls(nginx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not nginx:
        monkeypatch.setattr("shutil.which", lambda _: None)
    with tls_endpoint() as endpoint:
        for way in (*tls.PEERS, tls.BATCH, tls.RUN):
            one_in = 10 if way in tls.PEERS else 0
            found = isolated(tls.timed, way=way, endpoint=asdict(endpoint), requests=40, one_in=one_in)
            assert found["seconds"] > 0
            assert found["cpu_s"] > 0
            if way == tls.OWN:
                assert found["open"] == 0


def test_runs_are_counted_as_done() -> None:
    with watching_endpoint() as url:
        found = run_once(url, rows=20, stages=2, window=4)
        assert found["worst_ms"] >= found["median_ms"]
        assert arrivals(url).total == 2 * 64 + 2 * 20


@pytest.mark.long
@pytest.mark.parametrize("way", [images.bare, images.batch, images.run])
def test_pictures_are_sent(way: Callable[..., dict[str, float]], tmp_path: Path) -> None:
    images.write_pictures(tmp_path)
    with watching_endpoint() as url:
        found = isolated(way, url=url, folder=str(tmp_path), requests=20)
        assert found["seconds"] > 0
        assert arrivals(url).total == 64 + 20  # so many warm it up
    assert len({path.read_bytes() for path in tmp_path.glob("*.png")}) == images.FILES


def test_peers_are_among_the_ways() -> None:
    assert {BARE, "bare aiohttp loop", "OpenAI SDK loop", "LiteLLM loop", "generate_batch"} <= WAYS.keys()


def test_the_declarations_are_valid(tmp_path: Path) -> None:
    stages = load(experiment("http://127.0.0.1:9/v1", tmp_path / "rows.jsonl", stages=3, window=64)).stages
    assert [stage.max_parallel_requests for stage in stages.values()] == [21, 21, 21]  # type: ignore[union-attr]


def test_a_command_that_fails_is_an_error_with_its_words(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('no such luck')"]
    with pytest.raises(RuntimeError, match="exit code 1: no such luck"):
        ended(launch(failing, tmp_path), tmp_path)
    ended(launch(failing, tmp_path), tmp_path, expected=(1,))


@pytest.mark.skipif(not hasattr(sys.modules["os"], "wait4"), reason="the operating system does not tell")
def test_peak_memory_is_the_childs(tmp_path: Path) -> None:
    peak, seconds = peak_rss([sys.executable, "-c", "data = bytearray(300_000_000)"], tmp_path)
    assert peak > 300
    assert seconds > 0


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (profile.rendering, {profile.RENDER}),
        (profile.building, {profile.BUILD}),
        (profile.dispatching, {profile.DISPATCH}),
        (profile.parsing, {profile.PARSE}),
        (profile.running, {profile.RUNNER}),
        (profile.storing, {profile.PUT, profile.COMMIT}),
        (profile.reading, {profile.READ}),
    ],
)
def test_every_layer_of_the_profile_still_fits(layer: Callable[[int], dict[str, float]], names: set[str]) -> None:
    found = layer(2_100)
    assert found.keys() == names
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in found.values())


def test_the_store_keeps_every_state_of_the_benchmark() -> None:
    found = store.through_writer(2_100)  # which counts the rows itself
    assert found["seconds"] > 0
    assert store.singly(2)["seconds"] > 0


@pytest.mark.long
def test_an_asked_run_is_answered_while_it_goes_on() -> None:
    with watching_endpoint(delay_s=0.1) as url:
        found = live.one(url, rows=400, asked=True)
        assert found["answers"]
        assert all(math.isfinite(found[name]) and found[name] > 0 for name in ("seconds", "cpu_s", "cpu_share"))
        assert live.one(url, rows=20, asked=False).keys() == {"seconds"}


def test_a_shape_is_planned_and_run(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(20)))
    stages = {"a": plan.generate(4)}
    shape = plan.Shape("few", plan.declared("few", stages, simulator={"latency_s": 0.01}), 2)
    first, again = plan.planned(shape, tmp_path)
    assert (first.name, again.name) == ("few", "few, again")
    assert first.truth_tokens == again.truth_tokens > 0
    assert all(math.isfinite(found.ratio) and found.ratio > 0 for found in (first, again))
    assert len(first.row()) == 6


def test_every_shape_is_a_valid_declaration(tmp_path: Path) -> None:
    found = [shape.name for shape in plan.shapes(tmp_path) if load(shape.mapping)]
    assert len(found) == len(set(found)) > len(list(plan.shapes(tmp_path, quick=True)))


class TestTheCommand:
    """``python -m benchmarks``."""

    @pytest.fixture
    def output(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A page that is there, and no script that is really started."""
        page = tmp_path / "benchmarks.md"
        page.write_text("as it was")
        monkeypatch.setattr(whole, "PAGE", page)
        monkeypatch.setattr(whole, "ROOT", tmp_path)
        monkeypatch.setattr(whole, "describe", lambda: [["CPU", "two"]])
        return page

    def call(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        return whole.main()

    def test_what_is_not_installed_is_told_before_anything_starts(
        self, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(harness, "NEEDS", {"run": "no_such_package", "tls": "no_such_package"})
        monkeypatch.setattr(whole, "measured", lambda name, quick: pytest.fail("it has begun"))
        for arguments in ((), ("--quick", "run", "store", "tls")):
            assert self.call(monkeypatch, *arguments) == 2
            said = capsys.readouterr()
            assert said.out == ""
            (line,) = said.err.splitlines()
            assert "no_such_package not installed" in line
            assert "pip install -e '.[benchmarks]'" in line
        assert output.read_text() == "as it was"

    @pytest.mark.parametrize("named", [True, False])
    def test_where_a_script_fails_no_file_is_written(
        self, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], named: bool
    ) -> None:
        monkeypatch.setattr(harness, "NEEDS", {})
        monkeypatch.setattr(whole, "measured", lambda name, quick: None if name == "plan" else result())
        assert self.call(monkeypatch, *(["--output", str(output)] if named else [])) == 1
        said = capsys.readouterr()
        assert "no page is written: plan failed" in said.err
        assert "72,941" in said.out  # what was measured is not lost
        assert output.read_text() == "as it was"
        monkeypatch.setattr(whole, "measured", lambda name, quick: result())
        assert self.call(monkeypatch) == 0
        assert output.read_text().startswith("# Benchmarks")
