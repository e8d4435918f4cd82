"""The work of ``infermesh bench``. Figures go to stdout, everything else to stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import orjson
import typer

from infermesh.bench.measure import Level, Recommendation, as_json, recommend, sweep
from infermesh.bench.plot import check_plot, draw, picture_of
from infermesh.cli.common import fail, load_env
from infermesh.cli.oneshot.declare import as_flags, flags_mapping, refuse_secrets
from infermesh.cli.oneshot.options import GenerateOptions, InputOptions, LimitOptions, ModelOptions, SweepOptions
from infermesh.cli.oneshot.run import ONE_ANSWER, exit_quietly, row_input
from infermesh.config.declaration import declare
from infermesh.config.schema import SourceConfig
from infermesh.errors import ConfigError, InfermeshError
from infermesh.hints import counted, system_words
from infermesh.inputs.sources import resolve_source
from infermesh.runs.direct import open_stage
from infermesh.runtime.loop import run_loop
from infermesh.runtime.openfiles import allow_requests
from infermesh.store.sample import sample

_RULE = "the smallest concurrency within 5 % of the best throughput whose p95 is acceptable"


@dataclass(slots=True)
class Bench:
    """One call of a bench command."""

    kind: str
    sweep: SweepOptions
    rows: InputOptions
    model: ModelOptions
    limits: LimitOptions
    request: GenerateOptions | None = None
    given: str | list[str] | None = None
    stage: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    param: list[str] | None = None
    allow_paths: list[str] = field(default_factory=list)

    def run(self) -> NoReturn:
        """Measure, then exit: 0; 1 if every request failed; 3 if some failed or no level is acceptable."""
        refuse_secrets(self.rows, self.model, self.request, self)
        load_env(self.model.env_file)
        levels = _levels(self.sweep.concurrency)
        if (self.rows.input is None) == (self.given is None) and not isinstance(self.given, str):
            fail(f"give {ONE_ANSWER[self.kind][0]} or --input-jsonl FILE", code=2)
        try:
            if self.sweep.plot is not None:
                check_plot(self.sweep.plot)
            code = self._measure(levels)
        except InfermeshError as error:
            fail(as_flags(str(error), toml=self.model.deployments_toml is not None))
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                exit_quietly()
            fail(system_words(error, self.sweep.output_json or self.sweep.plot))
        raise typer.Exit(code)

    def _measure(self, levels: Sequence[int]) -> int:
        rows = self._read_rows()
        # bench measures speed: no warning of answers that do not parse
        logging.getLogger("infermesh").setLevel(logging.ERROR)
        limits = self.limits
        if limits.max_retries is None:
            limits = replace(limits, max_retries=0)  # a retried request would count as one slow answer
        mapping = flags_mapping(
            self.kind,
            self._source() if self.rows.input else {"sql": "select 1"},
            self.model,
            limits,
            request=self.request,
            flags=self.flags,
            param=self.param or (),
            stage={**self.stage, **row_input(self.kind, self.rows, self.given)},
            allow_paths=self.allow_paths,
        )
        with open_stage(declare(mapping, [Path.cwd()])) as stage:
            stage.check_columns(rows[0].keys())
            self._print_plan(levels)
            measured: list[Level] = run_loop(
                sweep(stage, rows, levels, requests=self.sweep.requests, warmup=self.sweep.warmup, report=_print_level)
            )
        return self._print_recommendation(measured)

    def _print_plan(self, levels: Sequence[int]) -> None:
        requests, warmup = self.sweep.requests, self.sweep.warmup
        each = f"{counted(len(levels), 'level')} × {counted(requests, 'request')}"
        print(f"{each}, after {counted(warmup, 'warm-up request')}", file=sys.stderr)
        if requests < 2 * max(levels):
            few = counted(requests, "request is", "requests are")
            print(f"{few} too few to measure c={max(levels)} well: raise --requests", file=sys.stderr)
        if (warning := allow_requests(max(levels))) is not None:
            print(warning.replace("max_parallel_requests", "--concurrency"), file=sys.stderr)

    def _print_recommendation(self, measured: Sequence[Level]) -> int:
        found = recommend(measured, self.sweep.max_p95)
        if found.concurrency is not None:
            print(f"recommended_max_parallel_requests={found.concurrency}", flush=True)
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
        self._write_files(measured, found)
        failed = sum(level.errors for level in measured)
        if failed:
            example = next(level.first_error for level in measured if level.first_error)
            print(f"{counted(failed, 'request')} failed: {example}", file=sys.stderr)
        if failed == sum(level.requests for level in measured):
            return 1
        return 3 if failed or (found.concurrency is None and not found.short) else 0

    def _write_files(self, measured: Sequence[Level], found: Recommendation) -> None:
        if self.sweep.output_json is not None:
            figures = as_json(
                measured, found, operation=self.kind, model=self.model.model, warmup=self.sweep.warmup, rule=_RULE
            )
            self.sweep.output_json.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
        if self.sweep.plot is not None:
            draw(self.sweep.plot, picture_of(f"{self.kind}: {self.model.model}", measured, found))

    def _source(self) -> dict[str, Any]:
        return {"path": self.rows.input, "encoding": self.rows.input_encoding}

    def _read_rows(self) -> list[dict[str, Any]]:
        """The rows to send: those of the command line, or the first rows of the file, as many as are needed."""
        if self.rows.input is None:
            name = ONE_ANSWER[self.kind][1]
            return [{name: value} for value in (self.given if isinstance(self.given, list) else [self.given])]
        size = self.stage.get("micro_batch_size") or 1
        most = max(self.sweep.requests, self.sweep.warmup) * size
        rows = sample(resolve_source(SourceConfig(**self._source(), limit=most), [Path.cwd()]))
        if not rows:
            raise ConfigError(f"--input-jsonl {self.rows.input}: no row in it can be read")
        return rows


def _levels(text: str) -> list[int]:
    try:
        levels = sorted({int(part) for part in text.split(",")})
    except ValueError:
        levels = [0]
    if levels[0] < 1:
        fail(f"--concurrency {text}: expected numbers from 1 up, separated by commas, such as 1,2,4,8", code=2)
    return levels


def _print_level(level: Level) -> None:
    print(level.line(), flush=True)
