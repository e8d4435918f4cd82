"""The options of the one-shot commands, each declared once, in groups that several commands take.

``None``: not given. The default is then that of :mod:`infermesh.config.schema`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from infermesh.types import LIMITS, Endpoint, RoutingStrategy

F = TypeVar("F", bound=Callable[..., Any])

FILES, RESUME, MODEL, REQUEST, PACE, SWEEP = "Rows", "Resume", "Model", "Request", "Limits and pace", "Sweep"
KEY_REASON = (
    "a key on the command line is visible to everybody on this machine (ps) and stays in the shell's history. Put it "
    "into the environment (export OPENAI_API_KEY=…) or in a file for --env-file"
)


def _option(panel: str, *names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


def _number_option(panel: str, name: str, help: str, metavar: str = "N", **settings: Any) -> Any:
    return _option(panel, name, help=help, metavar=metavar, **settings)


def _limit(name: str, **settings: Any) -> Any:
    return _number_option(PACE, f"--{name.replace('_', '-')}", f"{LIMITS[name]}.", **settings)


def _refuse_key(value: str | None) -> None:
    if value is not None:
        raise typer.BadParameter(KEY_REASON, param_hint="--api-key")


@dataclass
class PromptOption:
    """What generate is asked if there is no file."""

    prompt: Annotated[
        str | None, _option(FILES, "--prompt", help="One prompt; with --input-jsonl a template.", metavar="TEXT")
    ] = None


@dataclass
class TextOption:
    """What embed is asked if there is no file."""

    text: Annotated[
        str | None, _option(FILES, "--text", help="One text; with --input-jsonl a template.", metavar="TEXT")
    ] = None
    micro_batch_size: Annotated[
        int | None, _number_option(PACE, "--micro-batch-size", "Texts in one request (32).", min=1)
    ] = None
    dimensions: Annotated[int | None, _number_option(REQUEST, "--dimensions", "Length of the vectors.", min=1)] = None


@dataclass
class AudioOption:
    """What transcribe is asked if there is no file."""

    paths: Annotated[list[str] | None, typer.Argument(help="Audio files.", show_default=False)] = None
    max_transcription_bytes: Annotated[
        int | None, _number_option(REQUEST, "--max-transcription-bytes", "Larger clips are refused; 0: none.", min=0)
    ] = None
    language: Annotated[
        str | None, _option(REQUEST, "--language", help="The clips' language, such as en.", metavar="CODE")
    ] = None
    transcript_format: Annotated[
        str | None,
        _option(
            REQUEST,
            "--transcript-format",
            "--response-format",
            help="json, verbose_json, text, srt, vtt …",
            metavar="NAME",
        ),
    ] = None
    allow_path: Annotated[
        list[str] | None,
        _option(FILES, "--allow-path", help="Folder that rows may name files in; repeat it.", metavar="DIR"),
    ] = None


@dataclass
class ParamOption:
    """Request parameters that have no flag of their own."""

    param: Annotated[
        list[str] | None,
        _option(REQUEST, "--param", help="A further parameter; repeat it.", metavar="NAME=VALUE"),
    ] = None


@dataclass
class InputOptions:
    """Where rows come from."""

    input: Annotated[
        str | None,
        _option(FILES, "--input-jsonl", "--input", help=".jsonl, .csv or .parquet; - is stdin.", metavar="FILE"),
    ] = None
    mapper: Annotated[
        str | None, _option(FILES, "--mapper", help="module:function, row → {input, …}.", metavar="M:F")
    ] = None
    input_encoding: Annotated[
        str | None, _option(FILES, "--input-encoding", help="Of CSV (UTF-8), such as cp1252.", metavar="NAME")
    ] = None


@dataclass
class OutputOptions:
    """Where rows go, and what to do with an earlier run."""

    output: Annotated[
        str | None,
        _option(FILES, "--output-jsonl", "--output", help=".jsonl or .parquet; else stdout.", metavar="FILE"),
    ] = None
    keep_columns: Annotated[
        str | None,
        _option(FILES, "--keep-columns", help="Input columns to repeat: a,b; or all.", metavar="NAMES"),
    ] = None
    resume: Annotated[bool, _option(RESUME, "--resume", help="Continue an interrupted run.")] = False
    keep_errors: Annotated[bool, _option(RESUME, "--keep-errors", help="Leave failed rows as they are.")] = False
    rerun_changed: Annotated[
        bool, _option(RESUME, "--rerun-changed", help="Accept another model, prompt, mapper …")
    ] = False
    checkpoint_dir: Annotated[
        Path | None,
        _option(
            RESUME,
            "--checkpoint-dir",
            help="Where checkpoints go; else OUTPUT.infermesh.",
            metavar="DIR",
            envvar="INFERMESH_CHECKPOINT_DIR",
            show_envvar=False,
        ),
    ] = None


@dataclass
class ModelOptions:
    """Who answers."""

    model: Annotated[
        str | None, _option(MODEL, "--model", help="provider/model, or the deployments' name.", metavar="NAME")
    ] = None
    api_base: Annotated[
        list[str] | None, _option(MODEL, "--api-base", help="Server; repeat it for replicas.", metavar="URL")
    ] = None
    deployments_toml: Annotated[
        Path | None, _option(MODEL, "--deployments-toml", help="Replicas with their settings.", metavar="FILE")
    ] = None
    routing_strategy: Annotated[
        RoutingStrategy | None,
        _option(
            MODEL,
            "--routing-strategy",
            help="simple-shuffle (default), least-busy or latency-based-routing.",
            metavar="NAME",
        ),
    ] = None
    env_file: Annotated[
        Path | None, _option(MODEL, "--env-file", help="NAME=value lines with keys.", metavar="FILE", exists=True)
    ] = None
    api_key: Annotated[str | None, typer.Option("--api-key", hidden=True, callback=_refuse_key)] = None


@dataclass
class GenerateOptions:
    """What all generation requests have in common."""

    endpoint: Annotated[
        Endpoint | None,
        _option(
            REQUEST,
            "--endpoint",
            help="chat_completion (default), text_completion or responses.",
            metavar="NAME",
        ),
    ] = None
    system: Annotated[str | None, _option(REQUEST, "--system", help="System message, or its file.", metavar="TEXT")] = (
        None
    )
    max_tokens: Annotated[int | None, _number_option(REQUEST, "--max-tokens", "Longest answer.", min=1)] = None
    temperature: Annotated[float | None, _number_option(REQUEST, "--temperature", "Sampling temperature.", "X")] = None
    top_p: Annotated[float | None, _number_option(REQUEST, "--top-p", "Nucleus sampling.", "X", min=0, max=1)] = None
    seed: Annotated[int | None, _number_option(REQUEST, "--seed", "Seed of the sampling.")] = None
    response_format: Annotated[
        str | None,
        _option(REQUEST, "--response-format", help="schema.json or module:Class.", metavar="SCHEMA"),
    ] = None
    parse_json: Annotated[bool, _option(REQUEST, "--parse-json", help="Parse answers, with no schema sent.")] = False


@dataclass
class LimitOptions:
    """What the account allows, over all deployments: limits by their names in :class:`~infermesh.types.Limits`."""

    rpm: Annotated[float | None, _limit("rpm")] = None
    tpm: Annotated[float | None, _limit("tpm")] = None
    rpd: Annotated[float | None, _limit("rpd")] = None
    tpd: Annotated[float | None, _limit("tpd")] = None
    max_request_burst: Annotated[float | None, _limit("max_request_burst", min=1)] = None
    max_token_burst: Annotated[float | None, _limit("max_token_burst", min=1)] = None
    max_retries: Annotated[
        int | None, _number_option(PACE, "--max-retries", "Attempts after the first (3).", min=0)
    ] = None
    timeout: Annotated[float | None, _number_option(PACE, "--timeout", "Seconds for one attempt (600).", "S")] = None


@dataclass
class WindowOption:
    """How many requests are in flight, and when a command gives up."""

    max_parallel_requests: Annotated[
        int | None, _number_option(PACE, "--max-parallel-requests", "Requests in flight (64).", min=1)
    ] = None
    first_errors: Annotated[
        int | None,
        _number_option(PACE, "--first-errors", "Stop if the first N fail (20).", min=0),
    ] = None
    max_wait_unreachable: Annotated[
        float | None,
        _number_option(PACE, "--max-wait-unreachable", "Seconds to wait for a server (600).", "S", min=0),
    ] = None


@dataclass
class SweepOptions:
    """What bench measures."""

    concurrency: Annotated[
        str, _option(SWEEP, "--concurrency", help="Levels to measure (1,2,4,8,16,32).", metavar="N,N,…")
    ] = "1,2,4,8,16,32"
    requests: Annotated[int, _number_option(SWEEP, "--requests", "Requests at each level (50).", min=1)] = 50
    warmup: Annotated[int, _number_option(SWEEP, "--warmup", "Requests before, not counted (5).", min=0)] = 5
    max_p95: Annotated[
        float | None, _number_option(SWEEP, "--max-p95", "Highest p95 to recommend, in seconds.", "S")
    ] = None
    output_json: Annotated[
        Path | None, _option(SWEEP, "--output-json", help="All figures as JSON.", metavar="FILE")
    ] = None
    plot: Annotated[Path | None, _option(SWEEP, "--plot", help="Curves, as a page (.html).", metavar="FILE")] = None


@cache
def _hints(group: Hashable) -> dict[str, Any]:
    return get_type_hints(group, include_extras=True)


def takes(*groups: type[Any]) -> Callable[[F], F]:
    """Give a command the options of these groups. It is called with an instance of each, in their order."""

    def decorate(function: F) -> F:
        parameters, owners = [], {}
        for group in groups:
            hints = _hints(group)  # type: ignore[arg-type]
            for field in dataclasses.fields(group):
                kind = inspect.Parameter.KEYWORD_ONLY
                parameters.append(
                    inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name])
                )
                owners[field.name] = group

        def command(**values: Any) -> Any:
            return function(
                *(group(**{name: values[name] for name, owner in owners.items() if owner is group}) for group in groups)
            )

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command  # type: ignore[return-value]

    return decorate
