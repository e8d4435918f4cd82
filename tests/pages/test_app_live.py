"""A run that goes on, in the app: it is asked once for all pages that follow it, and these are told what changes."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from infermesh.pages.app import live
from infermesh.pages.app.live import LIVE
from infermesh.simulator import Simulator
from tests.pages.serving import Served, going_on, served
from tests.support import Lab, experiment, generate, texts, wait_until

RUN = "lab/run"


@pytest.fixture
def run(lab: Lab, simulator: Simulator) -> Lab:
    lab.rows(texts(30))
    lab.run(experiment(simulator.url, {"a": generate()}))
    return lab


class Stream:
    """A page's connection to the events of a run."""

    def __init__(self, app: Served) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", app.access.port, timeout=20)
        self.connection.request(
            "GET", f"/events/{RUN}", headers={"Cookie": f"{app.access.cookie}={app.access.session}"}
        )
        self.response = self.connection.getresponse()
        assert self.response.headers["Content-Type"] == "text/event-stream"
        assert self.response.headers["Cache-Control"] == "no-store"

    def event(self) -> tuple[str, Any]:
        """The next event and its data; ``("", None)`` at the end."""
        kind, data = "", None
        while line := self.response.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                data = json.loads(value)
            elif not name and kind:
                return kind, data
        return "", None


@contextmanager
def followed(app: Served) -> Iterator[Stream]:
    stream = Stream(app)
    try:
        yield stream
    finally:
        stream.response.close()
        stream.connection.close()


def done(data: Any) -> str:
    return str(data["parts"]["tiles"].split("results done</dt><dd>")[1].partition("<")[0])


def test_pages_are_told_what_changes_and_the_end(run: Lab) -> None:
    with served(run.root / "outputs", every_s=0.05, figures_every_s=0.05) as app:
        with going_on(run.folder) as connection:
            assert "data-events" in app.get(f"/overview/{RUN}").text
            with followed(app) as one, followed(app) as two:
                for stream in (one, two):
                    kind, data = stream.event()
                    assert kind == "parts"
                    assert done(data) == "30"
                    assert {"head", "tiles", "failed", "graph", "stages", "time", "deployments"} <= data["parts"].keys()
                    assert data["charts"][0]["name"] == "rows"
                connection.execute("UPDATE a SET status = 'error', error_type = 'server' WHERE row_id < 10")
                for stream in (one, two):
                    while "tiles" not in (found := stream.event()[1])["parts"]:
                        assert found["charts"]
                    assert done(found) == "20"
                connection.execute("CHECKPOINT")
                assert len(app.app[LIVE]._feeds) == 1
        with followed(app) as late:  # it is over
            kinds = [late.event()[0]]
            while kinds[-1]:
                kinds.append(late.event()[0])
            assert kinds[-2:] == ["over", ""]
        wait_until(lambda: not app.app[LIVE]._feeds, "the feed's end")
        assert "data-events" not in app.get(f"/overview/{RUN}").text


def test_a_run_is_asked_once_however_many_follow_and_not_at_all_without(
    run: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = live._asked

    def counted(folder: Any, before: Any) -> Any:
        asked.append(before is None)
        return real(folder, before)

    monkeypatch.setattr(live, "_asked", counted)
    with going_on(run.folder), served(run.root / "outputs", every_s=3600.0) as app:
        with followed(app) as first:
            first.event()
            with followed(app) as second:
                second.event()  # what is known already
                assert asked == [True]
        wait_until(lambda: not app.app[LIVE]._feeds, "the feed's end")


def test_the_server_ends_with_pages_open(run: Lab) -> None:
    with going_on(run.folder), served(run.root / "outputs", every_s=3600.0) as app:
        stream = Stream(app)
        stream.event()
        # Leaving the block waits for the server's thread; a stream that were waited for would end in a time-out.
    assert stream.event() == ("", None)
    stream.connection.close()


def test_a_live_runs_rows_and_stories(run: Lab) -> None:
    with going_on(run.folder), served(run.root / "outputs") as app:
        assert app.get(f"/rows/{RUN}", where="n < 3").text.count("<a data-item") == 3
        assert "no files" in app.get(f"/rows/{RUN}", where="(SELECT count(*) FROM read_text('/etc/passwd')) = 1").text
        assert "Parcel number 3 came late." in app.get(f"/row/3/{RUN}").read.said()
        assert app.sql(RUN, "SELECT count(*) FROM a")["rows"] == [["30"]]
        assert app.get(f"/api/export/{RUN}", sql="SELECT row_id FROM a WHERE row_id = 4", format="json").json == [
            {"row_id": 4}
        ]
        assert "▶ running" in app.get("/").read.said()
