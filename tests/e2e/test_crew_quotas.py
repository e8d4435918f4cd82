"""Quotas of a run over three workers, by the server's own clock: no minute above them, and little below."""

from __future__ import annotations

from typing import Any

import pytest

from tests.counting import CountingServer
from tests.support import Lab, experiment, generate, texts

SECONDS = 75


@pytest.mark.long
@pytest.mark.parametrize(
    ("limits", "a_minute"),
    [({"rpm": 6000}, 6000), ({"tpm": 80_000, "default_output_tokens": 3}, 10_000), ({"rpm": 90}, 90)],
)
def test_no_minute_sees_more_than_the_quota_and_at_least_97_percent(
    lab: Lab, limits: dict[str, Any], a_minute: float
) -> None:
    lab.rows(texts(16_000))
    with CountingServer(0.05) as server:
        mapping = experiment(server.url, {"a": generate(max_parallel_requests=64)})
        # An account of two deployments, so that each worker has two lines before it.
        mapping["limits"] = {"team": limits}
        mapping["deployments"] = {
            label: {"model": "hosted_vllm/any", "api_base": server.url, "limits": "team"} for label in "de"
        }
        mapping["models"]["m"]["deployments"] = ["d", "e"]
        lab.run(mapping | {"engine": {"workers": 3}, "guards": {"max_duration": SECONDS}})
    times = [at for at, _ in server.seen]
    assert len(server.seen) == len(server.counts)
    assert server.most_within(60.0) <= a_minute
    # From five seconds after the first request on, when all workers have come.
    begun = [at for at in times if at > times[0] + 5]
    assert (len(begun) - 1) / (begun[-1] - begun[0]) >= 0.97 * a_minute / 60
