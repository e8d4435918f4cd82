"""``infermesh bench``: its commands' options and help."""

from __future__ import annotations

import typer

from infermesh.cli.oneshot.commands import allow_paths, audio_flags, audio_stage
from infermesh.cli.oneshot.options import (
    AudioOption,
    GenerateOptions,
    InputOptions,
    LimitOptions,
    ModelOptions,
    ParamOption,
    PromptOption,
    SweepOptions,
    TextOption,
    takes,
)

PANEL = "One-shot"


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True,
        help="Measure throughput and latency at several concurrencies, and recommend one.",
    )
    for command, example in (
        (generate, "infermesh bench generate --model openai/gpt-4.1-mini --prompt 'Write a haiku.' --requests 200"),
        (embed, "infermesh bench embed --model text-embedding-3-small --text 'hello world' --concurrency 1,4,16"),
        (transcribe, "infermesh bench transcribe --model whisper-1 recording.wav --requests 20"),
    ):
        group.command(epilog=f"Example: {example}", no_args_is_help=True)(command)
    app.add_typer(group, name="bench", rich_help_panel=PANEL)


@takes(SweepOptions, PromptOption, InputOptions, ModelOptions, GenerateOptions, ParamOption, LimitOptions)
def generate(
    sweep: SweepOptions,
    ask: PromptOption,
    rows: InputOptions,
    model: ModelOptions,
    request: GenerateOptions,
    more: ParamOption,
    limits: LimitOptions,
) -> None:
    """Measure text generation at several concurrencies. Requests are sent and cost what they cost."""
    from infermesh.cli.oneshot.bench_run import Bench

    Bench("generate", sweep, rows, model, limits, request=request, given=ask.prompt, param=more.param).run()


@takes(SweepOptions, TextOption, InputOptions, ModelOptions, ParamOption, LimitOptions)
def embed(
    sweep: SweepOptions,
    ask: TextOption,
    rows: InputOptions,
    model: ModelOptions,
    more: ParamOption,
    limits: LimitOptions,
) -> None:
    """Measure embeddings at several concurrencies, with one text in a request (or --micro-batch-size)."""
    from infermesh.cli.oneshot.bench_run import Bench

    stage = {"micro_batch_size": ask.micro_batch_size or 1}
    Bench(
        "embed",
        sweep,
        rows,
        model,
        limits,
        given=ask.text,
        stage=stage,
        flags={"dimensions": ask.dimensions},
        param=more.param,
    ).run()


@takes(SweepOptions, AudioOption, InputOptions, ModelOptions, ParamOption, LimitOptions)
def transcribe(
    sweep: SweepOptions,
    ask: AudioOption,
    rows: InputOptions,
    model: ModelOptions,
    more: ParamOption,
    limits: LimitOptions,
) -> None:
    """Measure transcription at several concurrencies."""
    from infermesh.cli.oneshot.bench_run import Bench

    stage, allowed = audio_stage(ask), allow_paths(ask)
    Bench(
        "transcribe",
        sweep,
        rows,
        model,
        limits,
        given=ask.paths or None,
        stage=stage,
        flags=audio_flags(ask),
        param=more.param,
        allow_paths=allowed,
    ).run()
