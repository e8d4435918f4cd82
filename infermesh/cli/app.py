"""The commands. Each imports what it needs when it is called, so that ``--help`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infermesh.cli.common import PROJECT, RUNS, EnvFile, FormatOption, OutputsOption, RunArgument, load_env
from infermesh.cli.oneshot import bench
from infermesh.cli.oneshot import commands as oneshot

app = typer.Typer(
    name="infermesh",
    help="Run large LLM jobs from a declaration, keep every row's state in DuckDB.",
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
    context: typer.Context,
    env_file: EnvFile = None,
) -> None:
    """Run an experiment: +experiment=NAME and any overrides, as Hydra takes them.

    [bold]-m[/] sweeps over comma-separated values; [bold]--cfg job[/] shows the composed config;
    [bold]--config-dir DIR[/] adds configs; [bold]hydra.run.dir=DIR[/] runs in DIR, and goes on with the run there;
    [bold]--hydra-help[/] explains the rest. Tab completion: eval "$(infermesh run -sc install=bash)"
    """
    from infermesh.cli.run import run_hydra

    load_env(env_file)
    raise typer.Exit(run_hydra(list(context.args), env_file))


@app.command(
    rich_help_panel=RUNS,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: infermesh plan +experiment=quickstart --show 1",
)
def plan(
    context: typer.Context,
    show: Annotated[int, typer.Option("--show", help="Print so many requests of each stage in full.", min=0)] = 0,
    sample: Annotated[int, typer.Option("--sample", help="Rows to render, spread over the source.", min=1)] = 200,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    latency: Annotated[
        float | None, typer.Option("--latency", help="Seconds a request takes, where you know better.", min=0)
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option("--output-tokens", help="Tokens an answer has, where you know better.", min=1)
    ] = None,
    env_file: EnvFile = None,
) -> None:
    """Say what a run would send, cost and take, and what it would wait for; sends nothing.

    Takes +experiment=NAME and overrides as [bold]run[/] does. With [bold]hydra.run.dir=DIR[/] only what is pending in
    the run there is counted.
    """
    from infermesh.cli.plan import run_plan

    load_env(env_file)
    run_plan(list(context.args), show, sample, json, latency, output_tokens)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh resume outputs/quickstart/latest")
def resume(run: RunArgument = None, env_file: EnvFile = None) -> None:
    """Go on with a run: what is settled is not sent again, what failed is tried again.

    Without RUN, the newest unfinished one.
    """
    from infermesh.cli.run import resume_run

    load_env(env_file)
    raise typer.Exit(resume_run(run))


@app.command(
    rich_help_panel=RUNS,
    epilog="Example: infermesh retry --stage summaries --where \"error_type = 'timeout' or completion_tokens > 4000\"",
)
def retry(
    stage: Annotated[str, typer.Option("--stage", help="The stage whose rows to do again.")],
    run: RunArgument = None,
    where: Annotated[
        str, typer.Option("--where", help="Which of its rows: SQL over the stage's columns.")
    ] = "status = 'error'",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many rows they are, and end.")] = False,
    env_file: EnvFile = None,
) -> None:
    """Send settled rows of a stage again, and then those later requests that change with them.

    The attempts that were made stay in the table attempts.
    """
    from infermesh.cli.run import retry_run

    load_env(env_file)
    raise typer.Exit(retry_run(run, stage, where, dry_run=dry_run))


@app.command(rich_help_panel=RUNS, epilog='Example: infermesh sql "select topic, count(*) from results group by all"')
def sql(
    query: Annotated[str, typer.Argument(help="Tables: results, progress, source, attempts, run and the stages.")],
    run: Annotated[
        str | None, typer.Option("--run", help="A run's folder or id; the newest where none is named.")
    ] = None,
    format: FormatOption = None,
    every: Annotated[bool, typer.Option("--all", help="Ask all runs below --outputs, as one.")] = False,
    runs: Annotated[
        list[str] | None, typer.Option("--runs", help="Ask these runs as one: a quoted glob of folders; repeatable.")
    ] = None,
    outputs: OutputsOption = Path("outputs"),
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0.001, help="Seconds for the query; 30 on a run that goes on, else no limit."),
    ] = None,
) -> None:
    """Ask a run's tables, also while it goes on, or those of many runs; data alone goes to stdout."""
    if every or runs:
        from infermesh.cli.compare import sql_across

        sql_across(query, runs or [], format, run=run, every=every, outputs=outputs)
        return
    from infermesh.cli.query import run_sql

    run_sql(query, run, format, timeout)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh diff RUN_A RUN_B --stage summaries --format jsonl")
def diff(
    run_a: Annotated[str, typer.Argument(help="A run's folder or id, or an experiment's name for its newest.")],
    run_b: Annotated[str, typer.Argument(help="The run to compare it with.")],
    stage: Annotated[str | None, typer.Option("--stage", help="Only this stage.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many differing rows to show; 0 for all.")] = 10,
    format: FormatOption = None,
) -> None:
    """Compare two runs row by row: answers, failures, cost and speed.

    The comparison goes to stderr; the rows that differ go to stdout, as data.
    """
    from infermesh.cli.compare import diff_runs

    diff_runs(run_a, run_b, stage, limit, format)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh export outputs/quickstart/latest results.parquet")
def export(
    run: Annotated[str, typer.Argument(help="A run's folder or id, or an experiment's name for its newest.")],
    out: Annotated[Path, typer.Argument(help="A .parquet, .csv, .tsv or .jsonl file; the last three also .gz, .zst.")],
    table: Annotated[str | None, typer.Option("--table", help="results (the default), a stage, attempts, …")] = None,
    columns: Annotated[str | None, typer.Option("--columns", help="Which columns, separated by commas.")] = None,
    where: Annotated[str | None, typer.Option("--where", help="SQL condition over the table's columns.")] = None,
    sql: Annotated[str | None, typer.Option("--sql", help="Write the rows of this query instead of a table's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a run's results, or another table of it, into a file."""
    from infermesh.cli.export import export_run

    export_run(run, out, table=table, columns=columns, where=where, sql=sql, overwrite=overwrite)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh status outputs/quickstart/latest")
def status(run: RunArgument = None) -> None:
    """Show how far a run is, and what failed."""
    from infermesh.cli.query import show_status

    show_status(run)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh stop outputs/quickstart/latest")
def stop(
    run: Annotated[
        str | None, typer.Argument(help="A run's folder or id; the one that goes on where none is named.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.")] = True,
) -> None:
    """Stop a run that goes on, as its first Ctrl-C would: rows already sent are waited for and kept."""
    from infermesh.cli.query import stop_run

    stop_run(run, wait)


@app.command(rich_help_panel=RUNS, epilog="Example: infermesh runs --outputs outputs")
def runs(
    outputs: OutputsOption = Path("outputs"),
) -> None:
    """List the runs below outputs/, newest first."""
    from infermesh.cli.query import list_runs

    list_runs(outputs)


@app.command(rich_help_panel=PROJECT, epilog="Example: infermesh init my-project")
def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make the project in; it may exist, files are kept.")],
) -> None:
    """Write a project of your own: conf/, pipelines/, outputs/, .env.example, README.md. It runs at once."""
    from infermesh.cli.init import init_project

    init_project(folder)


@app.command(
    rich_help_panel=PROJECT,
    epilog="Example: infermesh simulate --port 8000 latency_s=0.2 capacity=16 faults.server_error=0.1",
)
def simulate(
    settings: Annotated[
        list[str] | None, typer.Argument(help="SETTING=VALUE pairs; --list shows every setting with its default.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 0,
    list_settings: Annotated[bool, typer.Option("--list", help="Show every setting and end.")] = False,
) -> None:
    """Serve a local OpenAI-compatible API with latency, capacity, quotas and faults on demand."""
    from infermesh.cli.simulate import simulate_server

    simulate_server(settings or [], host, port, list_settings)


def _version(value: bool) -> None:
    if value:
        from infermesh import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    pass


oneshot.register(app)
bench.register(app)
