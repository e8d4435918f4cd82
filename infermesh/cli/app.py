"""The commands, their options and their help. Each imports its work when called, so that ``--help`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infermesh.cli.common import (
    PROJECT,
    RUNS,
    BackgroundOption,
    Commands,
    DetachOption,
    EnvFile,
    ExperimentOption,
    FormatOption,
    JsonOption,
    LiveRunArgument,
    OutputsOption,
    Overrides,
    Progress,
    ProgressOption,
    RecordOption,
    RunArgument,
    StateOption,
    fail,
    load_env,
)
from infermesh.cli.completers import (
    complete_run,
    complete_setting,
    complete_shell,
    complete_stage,
    complete_table,
)
from infermesh.cli.oneshot import bench
from infermesh.cli.oneshot import commands as oneshot

app = typer.Typer(
    name="infermesh",
    cls=Commands,
    help="Run large LLM jobs from a YAML file. Every row's state is kept in DuckDB.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(
    rich_help_panel=RUNS,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: infermesh run +experiment=quickstart stages.summaries.max_parallel_requests=8",
)
def run(
    overrides: Overrides = None,
    detach: BackgroundOption = False,
    detach_batches: DetachOption = False,
    progress: ProgressOption = Progress.AUTO,
    env_file: EnvFile = None,
) -> None:
    """Run an experiment: its NAME, then any overrides (KEY=VALUE), in Hydra's syntax.

    NAME, or +experiment=NAME, reads conf/experiment/NAME.yaml. [bold]-m[/] runs one job for each comma-separated value;
    [bold]--cfg job[/] shows the composed config and runs nothing; [bold]--config-dir DIR[/] adds a folder of configs;
    [bold]hydra.run.dir=DIR[/] runs in DIR, or continues the run that is there; [bold]--hydra-help[/] lists Hydra's own
    options. For completion at TAB: [bold]infermesh completion --help[/]
    """
    from infermesh.cli.detach import in_background, run_detached
    from infermesh.cli.run import run_hydra

    load_env(env_file)
    if detach:
        if {"-m", "--multirun"} & {*(overrides or [])}:
            fail("--detach: a sweep runs in the foreground. Detach its runs one by one, or use nohup or tmux", code=2)
        raise typer.Exit(run_detached(["run", *(overrides or []), *in_background(progress, detach_batches)]))
    raise typer.Exit(run_hydra(overrides or [], env_file, progress, detach=detach_batches))


@app.command(
    rich_help_panel=RUNS,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: infermesh plan +experiment=quickstart --show 1",
)
def plan(
    overrides: Overrides = None,
    show: Annotated[int, typer.Option("--show", help="Print the first N requests of each stage in full.", min=0)] = 0,
    sample: Annotated[
        int, typer.Option("--sample", help="Rows to render for the estimate, spread over the source.", min=1)
    ] = 200,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    latency: Annotated[
        float | None, typer.Option("--latency", help="Seconds that one request takes; replaces the estimate.", min=0)
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option("--output-tokens", help="Tokens in one answer; replaces the estimate.", min=1)
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Estimate a run: requests, tokens, cost, time, and the limit that sets the time. Nothing is sent.

    Takes +experiment=NAME and overrides, as [bold]run[/] does. With [bold]hydra.run.dir=DIR[/] it counts only what is
    still to do in the run there.
    """
    from infermesh.cli.plan import run_plan

    load_env(env_file)
    run_plan(overrides or [], show, sample, json, latency, output_tokens)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh resume outputs/quickstart/latest engine=local")
def resume(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run's folder or id, or an experiment's name; default: the newest, if unfinished.",
            autocompletion=complete_run,
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Argument(help="Go on with another engine: engine=NAME, engine.workers=N.", metavar="[engine=…]"),
    ] = None,
    keep_errors: Annotated[bool, typer.Option("--keep-errors", help="Leave failed rows as they are.")] = False,
    detach: BackgroundOption = False,
    detach_batches: DetachOption = False,
    progress: ProgressOption = Progress.AUTO,
    env_file: EnvFile = None,
) -> None:
    """Continue a run where it ended. Rows that are done are not sent again; failed rows are retried."""
    from infermesh.cli.detach import in_background, run_detached
    from infermesh.cli.run import resume_run

    load_env(env_file)
    overrides = engine or []
    if run is not None and run.startswith(("engine=", "engine.")) and "=" in run:
        run, overrides = None, [str(run), *overrides]
    if detach:
        words = [*([] if run is None else [run]), *overrides, *(["--keep-errors"] if keep_errors else [])]
        raise typer.Exit(run_detached(["resume", *words, *in_background(progress, detach_batches)]))
    raise typer.Exit(resume_run(run, overrides, keep_errors=keep_errors, detach=detach_batches, progress=progress))


@app.command(
    rich_help_panel=RUNS,
    epilog="Example: infermesh retry --stage summaries --where \"error_type = 'timeout' or completion_tokens > 4000\"",
)
def retry(
    stage: Annotated[
        str, typer.Option("--stage", help="The stage whose rows to send again.", autocompletion=complete_stage)
    ],
    run: RunArgument = None,
    where: Annotated[
        str, typer.Option("--where", help="Which of its rows: an SQL condition on the stage's columns.")
    ] = "status = 'error'",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the number of rows and send nothing.")] = False,
    progress: ProgressOption = Progress.AUTO,
    env_file: EnvFile = None,
) -> None:
    """Send chosen rows of a stage again, and the later requests that change as a result. No other row is sent.

    A run that is running sends those that have failed in it beside the others.
    The table attempts keeps every earlier request.
    """
    from infermesh.cli.run import retry_run

    load_env(env_file)
    raise typer.Exit(retry_run(run, stage, where, dry_run=dry_run, progress=progress))


@app.command(rich_help_panel=RUNS, epilog='Example: infermesh sql "select channel, count(*) from results group by all"')
def sql(
    query: Annotated[
        str, typer.Argument(help="A SELECT. Tables: results, progress, source, attempts, run, and one per stage.")
    ],
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            help="A run's folder or id, or an experiment's name; default: the newest.",
            autocompletion=complete_run,
        ),
    ] = None,
    format: FormatOption = None,
    record: RecordOption = False,
    every: Annotated[bool, typer.Option("--all", help="Query all runs below --outputs together.")] = False,
    runs: Annotated[
        list[str] | None,
        typer.Option("--runs", help="Query the runs that match this quoted glob together; repeatable."),
    ] = None,
    outputs: OutputsOption = Path("outputs"),
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0.001, help="Seconds for the query. Default: 30 while the run is running, else none."
        ),
    ] = None,
) -> None:
    """Query a run's tables with SQL, while it runs or afterwards; or many runs together. Only data goes to stdout."""
    if every or runs:
        from infermesh.cli.compare import sql_across

        sql_across(query, runs or [], format, record=record, run=run, every=every, outputs=outputs)
        return
    from infermesh.cli.query import run_sql

    run_sql(query, run, format, timeout, record=record)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh diff RUN_A RUN_B --stage summaries --format jsonl")
def diff(
    run_a: Annotated[
        str,
        typer.Argument(
            help="A run's folder or id, or an experiment's name (its newest run).", autocompletion=complete_run
        ),
    ],
    run_b: Annotated[str, typer.Argument(help="The run to compare it with.", autocompletion=complete_run)],
    stage: Annotated[
        str | None, typer.Option("--stage", help="Only this stage.", autocompletion=complete_stage)
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Differing rows to show for each stage; 0 for all.")
    ] = 10,
    format: FormatOption = None,
) -> None:
    """Compare two runs row by row: answers, failures, cost and speed.

    The comparison goes to stderr. The rows that differ go to stdout, as data.
    """
    from infermesh.cli.compare import diff_runs

    diff_runs(run_a, run_b, stage, limit, format)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh export outputs/quickstart/latest results.parquet")
def export(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's folder or id, or an experiment's name (its newest run).", autocompletion=complete_run
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="A .parquet, .csv, .tsv or .jsonl file; the last three also with .gz or .zst.")
    ],
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            help="The table to write: results (default), a stage, attempts, …",
            autocompletion=complete_table,
        ),
    ] = None,
    columns: Annotated[str | None, typer.Option("--columns", help="The columns to write, separated by commas.")] = None,
    where: Annotated[
        str | None, typer.Option("--where", help="Which rows: an SQL condition on the table's columns.")
    ] = None,
    sql: Annotated[str | None, typer.Option("--sql", help="Write the result of this query instead of a table.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a run's results, another of its tables, or a query's result to a file."""
    from infermesh.cli.export import export_run

    export_run(run, out, table=table, columns=columns, where=where, sql=sql, overwrite=overwrite)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh status outputs/quickstart/latest")
def status(
    run: RunArgument = None,
    experiment: ExperimentOption = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Show a run's progress and its failures; of a sweep's folder, its jobs.

    Without RUN, the newest run that [bold]--experiment[/] and [bold]--state[/] leave.
    """
    from infermesh.cli.status import show_status

    show_status(run, experiment, state or [], json=json)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh show quickstart ticket_id=T-0007 --stage summaries")
def show(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] ROW", help="A run as elsewhere (default: the newest); a row_id, or COLUMN=VALUE."
        ),
    ],
    origin: Annotated[
        str, typer.Option("--rows", help="Whose row: source, or a sql stage that makes rows.")
    ] = "source",
    stage: Annotated[str | None, typer.Option("--stage", help="Only this stage.")] = None,
    json: JsonOption = False,
) -> None:
    """Show one row's story: its columns, and in each stage the request, the answer and every attempt.

    Requests are rendered again from the run's config; a line says whether that is what was sent. Nothing is sent.
    """
    from infermesh.cli.show import show_row

    show_row(words, origin, stage, json=json)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh report outputs/quickstart/latest --output mine.html")
def report(
    run: RunArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file; default: report.html in the run's folder.", metavar="FILE"),
    ] = None,
) -> None:
    """Write a page over a run, or over a sweep's folder: one HTML file, which needs neither network nor server.

    A run writes it by itself when it ends ([bold]report=false[/]: not). While it runs, the page shows how far it is.
    The file's path goes to stdout.
    """
    from infermesh.cli.report import report_on

    report_on(run, output)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh view quickstart --port 8600 --no-open")
def view(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run's folder or id, an experiment's name, or a sweep's folder; default: the list of runs.",
            autocompletion=complete_run,
        ),
    ] = None,
    outputs: OutputsOption = Path("outputs"),
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 picks a free one.", min=0, max=65535)] = 0,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let a --host be one that other machines reach.")
    ] = False,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")] = True,
) -> None:
    """Look at runs in a browser, live ones too: progress, failures, rows, one row's story, SQL.

    The address goes to stdout; it holds a token, without which nothing is shown. Ctrl-C ends it. Nothing is changed.
    """
    from infermesh.cli.view import view_runs

    view_runs(run, outputs, host, port, allow_remote=allow_remote, open_browser=open_browser)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh verify outputs/quickstart/latest")
def verify(run: RunArgument = None) -> None:
    """Check that nothing of a run is lost, doubled or changed: its tables, its requests, the files that it wrote.

    A line for each thing that was checked; exit code 1 if one is wrong.
    """
    from infermesh.cli.verify import verify_run

    verify_run(run)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh stop outputs/quickstart/latest")
def stop(
    run: LiveRunArgument = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the run has ended.")] = True,
    cancel_batches: Annotated[
        bool,
        typer.Option(
            "--cancel-batches", help="Also end its batches at the provider; a resume collects what they have answered."
        ),
    ] = False,
    env_file: EnvFile = None,
) -> None:
    """Stop a running run as its first Ctrl-C would: nothing more is sent, and what was sent is waited for."""
    if cancel_batches:
        from infermesh.cli.batches import cancel_batches_of

        load_env(env_file)
        cancel_batches_of(run, wait)
        return
    from infermesh.cli.query import stop_run

    stop_run(run, wait)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh attach outputs/quickstart/latest")
def attach(run: LiveRunArgument = None, progress: ProgressOption = Progress.AUTO) -> None:
    """Show a run's progress until it ends, and exit with its code. Ctrl-C ends the show and not the run."""
    from infermesh.cli.attach import attach_to

    raise typer.Exit(attach_to(run, progress))


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh logs -f outputs/quickstart/latest")
def logs(
    run: RunArgument = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Print what a run with [bold]--detach[/] says (stderr.log in its folder), or a run's run.log."""
    from infermesh.cli.attach import show_logs

    show_logs(run, follow)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh pause outputs/quickstart/latest")
def pause(run: LiveRunArgument = None) -> None:
    """Pause a running run: no new request is sent, those in flight go on. [bold]continue[/] ends the pause."""
    from infermesh.cli.hands import pause_run

    pause_run(run)


@app.command("continue", rich_help_panel=RUNS, epilog="Example: infermesh continue outputs/quickstart/latest")
def go_on(run: LiveRunArgument = None) -> None:
    """Let a paused run go on. (A run that has ended goes on with [bold]resume[/].)"""
    from infermesh.cli.hands import continue_run

    continue_run(run)


@app.command(
    "set",
    rich_help_panel=RUNS,
    epilog="Example: infermesh set limits.team.rpm=2000 stages.summaries.max_parallel_requests=128",
)
def set_live(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] KEY=VALUE…",
            help="A run's folder or id, or an experiment's name (default: the running one); then what to change.",
        ),
    ],
    keep: Annotated[
        bool, typer.Option("--keep", help="Also in the config that the run stores, by which a resume goes.")
    ] = False,
) -> None:
    """Change limits, windows, weights or the budget of a running run, at once: see docs/live-runs.md.

    Each change is a row of the run's table changes. A key that cannot be changed is refused, with those that can.
    """
    from infermesh.cli.hands import set_in_run

    set_in_run(words, keep=keep)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh batches outputs/quickstart/latest")
def batches(run: RunArgument = None, json: JsonOption = False) -> None:
    """Show the batches that a run has given to providers: how each is, and what it has brought."""
    from infermesh.cli.batches import show_batches

    show_batches(run, json=json)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh runs --state failed_rows --state interrupted --json")
def runs(
    outputs: OutputsOption = Path("outputs"),
    experiment: ExperimentOption = None,
    state: StateOption = None,
    sort: Annotated[
        str, typer.Option("--sort", help="written (default), started, cost, done, failed or pending; largest first.")
    ] = "written",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    json: JsonOption = False,
) -> None:
    """List the runs below outputs/, those that were written to last first."""
    from infermesh.cli.status import list_runs

    list_runs(outputs, experiment, state or [], sort, limit, json=json)


def _templates() -> list[str]:
    from infermesh.cli.init import TEMPLATES

    return list(TEMPLATES)


@app.command(rich_help_panel=PROJECT, epilog="Example: infermesh init my-project --template classify")
def init(
    folder: Annotated[Path, typer.Argument(help="The project's folder. It may exist: existing files are kept.")],
    template: Annotated[
        str,
        typer.Option(
            "--template",
            help="reviews, classify, extract, embed, transcribe or judge.",
            metavar="NAME",
            autocompletion=_templates,
        ),
    ] = "reviews",
) -> None:
    """Create a small project that runs at once, with no key and no server: an experiment, its prompt, its data."""
    from infermesh.cli.init import init_project

    init_project(folder, template)


@app.command(
    rich_help_panel=PROJECT,
    epilog="Example: infermesh simulate --port 8000 latency_s=0.2 capacity=16 faults.server_error=0.1",
)
def simulate(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            help="SETTING=VALUE pairs; --list shows all settings with their defaults.", autocompletion=complete_setting
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 picks a free one.")] = 0,
    list_settings: Annotated[bool, typer.Option("--list", help="Show all settings and exit.")] = False,
) -> None:
    """Serve a simulated OpenAI-compatible API: you set latency, capacity, quotas and faults.

    The server's URL goes to stdout. Ctrl-C ends it.
    """
    from infermesh.cli.simulate import simulate_server

    simulate_server(settings or [], host, port, list_settings)


@app.command(
    rich_help_panel=PROJECT,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: infermesh doctor +experiment=quickstart --send",
)
def doctor(
    overrides: Overrides = None,
    send: Annotated[bool, typer.Option("--send", help="Ask each deployment for one tiny answer, too.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", help="Seconds for each answer; default: 10, with --send 30.", min=0.1),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    env_file: EnvFile = None,
) -> None:
    """Look for what stands between you and a run: versions, config, keys, deployments, clock, disk, file limits.

    With +experiment=NAME and overrides, as [bold]run[/] takes them, each deployment is asked which models it serves.
    Each line says ok, warn or fail, and what to do. Exit code 1 if something fails.
    """
    from infermesh.cli.doctor.command import run_doctor

    load_env(env_file)
    given = timeout if timeout is not None else 30.0 if send else 10.0
    raise typer.Exit(run_doctor(overrides or [], timeout=given, send=send, as_json=json))


@app.command(rich_help_panel=PROJECT, epilog="Example: infermesh schema > conf/experiment.schema.json")
def schema() -> None:
    """Print the JSON schema of an experiment's file, for editors and checks.

    An editor that has a YAML language server uses it where the file says so, in a line of its own near the top:
    [bold]# yaml-language-server: $schema=../experiment.schema.json[/]
    """
    import orjson

    from infermesh.config.json_schema import experiment_schema

    print(orjson.dumps(experiment_schema(), option=orjson.OPT_INDENT_2).decode())


@app.command(rich_help_panel=PROJECT, epilog="Example: infermesh skill > .claude/skills/infermesh/SKILL.md")
def skill() -> None:
    """Print a page for coding agents: how to write an experiment, run it, look at it, resume it, and common slips."""
    print(Path(__file__).with_name("skill.md").read_text(encoding="utf-8"), end="")


@app.command(rich_help_panel=PROJECT, epilog='Example: eval "$(infermesh completion bash)"')
def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.", autocompletion=complete_shell)],
) -> None:
    """Print the script that completes commands, options, experiments, overrides and runs at TAB.

    For every new shell: add [bold]eval "$(infermesh completion bash)"[/] to ~/.bashrc, the same with zsh to ~/.zshrc;
    for fish [bold]infermesh completion fish > ~/.config/fish/completions/infermesh.fish[/].
    """
    from infermesh.cli.completion import print_script

    print_script(shell)


def _version(value: bool) -> None:
    if value:
        from infermesh import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


oneshot.register(app)
bench.register(app)
