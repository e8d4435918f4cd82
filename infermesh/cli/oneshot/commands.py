"""``infermesh generate``, ``embed`` and ``transcribe``: their options and help. Each imports its work when called."""

from __future__ import annotations

import os

import typer

from infermesh.cli.oneshot.options import (
    AudioOption,
    GenerateOptions,
    InputOptions,
    LimitOptions,
    ModelOptions,
    OutputOptions,
    ParamOption,
    PromptOption,
    TextOption,
    WindowOption,
    takes,
)

PANEL = "One-shot"


def register(app: typer.Typer) -> None:
    for command, example in (
        (generate, "infermesh generate --model openai/gpt-4.1-mini --input-jsonl in.jsonl --output-jsonl out.jsonl"),
        (embed, "infermesh embed --model text-embedding-3-small --text 'hello world'"),
        (transcribe, "infermesh transcribe --model whisper-1 recording.wav"),
    ):
        app.command(rich_help_panel=PANEL, epilog=f"Example: {example}", no_args_is_help=True)(command)


@takes(
    PromptOption, InputOptions, OutputOptions, ModelOptions, GenerateOptions, ParamOption, LimitOptions, WindowOption
)
def generate(
    ask: PromptOption,
    rows: InputOptions,
    out: OutputOptions,
    model: ModelOptions,
    request: GenerateOptions,
    more: ParamOption,
    limits: LimitOptions,
    window: WindowOption,
) -> None:
    """Generate text for one prompt, or for each row of a file (fields: prompt, messages or responses_input)."""
    from infermesh.cli.oneshot.run import Command

    Command("generate", rows, out, model, limits, window, request=request, given=ask.prompt, param=more.param).run()


@takes(TextOption, InputOptions, OutputOptions, ModelOptions, ParamOption, LimitOptions, WindowOption)
def embed(
    ask: TextOption,
    rows: InputOptions,
    out: OutputOptions,
    model: ModelOptions,
    more: ParamOption,
    limits: LimitOptions,
    window: WindowOption,
) -> None:
    """Embed one text, or each row of a file (field: text)."""
    from infermesh.cli.oneshot.run import Command

    stage = {"micro_batch_size": ask.micro_batch_size}
    flags = {"dimensions": ask.dimensions}
    Command("embed", rows, out, model, limits, window, given=ask.text, stage=stage, flags=flags, param=more.param).run()


@takes(AudioOption, InputOptions, OutputOptions, ModelOptions, ParamOption, LimitOptions, WindowOption)
def transcribe(
    ask: AudioOption,
    rows: InputOptions,
    out: OutputOptions,
    model: ModelOptions,
    more: ParamOption,
    limits: LimitOptions,
    window: WindowOption,
) -> None:
    """Transcribe audio files, or each row of a file (field: path)."""
    from infermesh.cli.oneshot.run import Command

    stage, allowed = audio_stage(ask), allow_paths(ask)
    Command(
        "transcribe",
        rows,
        out,
        model,
        limits,
        window,
        given=ask.paths or None,
        stage=stage,
        flags=audio_flags(ask),
        param=more.param,
        allow_paths=allowed,
    ).run()


def allow_paths(ask: AudioOption) -> list[str]:
    """What may be sent besides files in the input's and the working folder: those that the command line names."""
    return [*(path for path in ask.paths or () if os.path.exists(os.path.expanduser(path))), *(ask.allow_path or ())]


def audio_flags(ask: AudioOption) -> dict[str, str | None]:
    """The request's parameters that have a flag of their own."""
    return {"language": ask.language, "response_format": ask.transcript_format}


def audio_stage(ask: AudioOption) -> dict[str, int | None]:
    """The stage's keys. The option's 0 means no limit, which the stage writes as ``None``."""
    return (
        {} if ask.max_transcription_bytes is None else {"max_transcription_bytes": ask.max_transcription_bytes or None}
    )
