"""The schema of an experiment, as pydantic models.

Every key is declared here and nowhere else. Hydra, or anything else, composes a plain mapping, and
:func:`~infermesh.config.load.load` makes it an :class:`Experiment`. The descriptions of the keys are part of the user's
documentation: docs/configuration.md says the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from infermesh.config.deployment import MAX_RESPONSE_BYTES, DeploymentConfig
from infermesh.config.references import FromEnvironment
from infermesh.simulator.settings import SimulatorSettings
from infermesh.types import AccountLimits, Endpoint, Limits, RoutingStrategy, TransportKind

RESERVED_TABLES = frozenset(
    {"run", "source", "source_errors", "attempts", "results", "progress", "retired", "output_file", "sessions"}
    | {"materialized", "redo_rows", "attempts_log", "batches", "batch_rows", "changes"}
)
OWN_FIELDS = "row"  # the mapper that takes a row's own fields as the request
STAGE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


NO_NAME = "unnamed"  # what an experiment is called that does not say
SIMULATED = "simulator/"  # what the model's name begins with where the embedded simulator answers

_LIMITS = TypeAdapter(Limits)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), frozen=True)


def _type_names(given: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    if given not in ("text", "auto") and not isinstance(given, Mapping):
        raise ValueError("expected text, auto, or a type for each column: {stars: BIGINT}")
    return validate(given)


TypeNames = Annotated[Literal["text", "auto"] | dict[str, str], WrapValidator(_type_names)]


class SourceConfig(_Section):
    """Where rows come from: files (``path``), a DuckDB query (``sql``) or a Hugging Face dataset, one of the three."""

    path: str | None = Field(None, description="A .jsonl, .csv, .tsv or .parquet file (also .gz, .zst), or a glob")
    sql: str | None = Field(None, description="A DuckDB query whose rows are the source")
    dataset: str | None = Field(None, description="A Hugging Face dataset's id, or a local folder that holds one")
    subset: str | None = Field(None, description="The dataset's configuration")
    split: str = Field("train", description="The dataset's split")
    revision: str | None = Field(None, description="The dataset's branch, tag or commit")
    format: Literal["auto", "jsonl", "csv", "parquet"] = Field("auto", description="auto: by the file's name")
    limit: int | None = Field(None, ge=0, description="Only the first rows")
    delimiter: str | None = Field(
        None, min_length=1, max_length=4, description="Of CSV, up to four characters; null: as each file has it"
    )
    quote: str | None = Field(None, max_length=1, description="Of CSV; null: the double quote; empty: none")
    escape: str | None = Field(
        None, min_length=1, max_length=1, description="What stands before a quote within quotes; null: a second quote"
    )
    header: bool = Field(True, description="Whether a CSV file's first line names the columns; else column0, column1 …")
    encoding: str | None = Field(None, description="Of CSV; null: UTF-8, or as a byte order mark says")
    comment: str | None = Field(None, min_length=1, max_length=1, description="What comments in CSV begin with")
    types: TypeNames = Field(
        "text", description="Of CSV columns: text, auto (what all values fit), or column: DuckDB type"
    )
    hive: bool = Field(False, description="Make columns of the folders' names (lang=en/)")

    @model_validator(mode="after")
    def _one_of(self) -> SourceConfig:
        if (self.path, self.sql, self.dataset).count(None) != 2:
            given = [name for name in ("path", "sql", "dataset") if getattr(self, name) is not None]
            more = f"; {' and '.join(given)} are given: set one to null" if given else ""
            raise ValueError(f"give either 'path' (a file or a glob), 'sql' (a query) or 'dataset' (an id){more}")
        return self


class HeaderFromEnv(_Section):
    """A header's value that is taken from an environment variable, so that it reaches no file."""

    env: str = Field(min_length=1, description="Environment variable that holds the value")


# This one keeps a reference what it is: pydantic would make it plain text.
def _text_or_reference(given: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return given if isinstance(given, FromEnvironment) else validate(given)


# These two tell the forms of a value apart. Left to itself, pydantic reports a mistake once for each form.
def _header_value(given: Any, _: Any) -> Any:
    if isinstance(given, Mapping):
        return HeaderFromEnv.model_validate(given)
    if not isinstance(given, str | HeaderFromEnv):
        raise ValueError("expected text, or {env: NAME}")
    return given


def _limits_or_account(given: Any, _: Any) -> Any:
    if isinstance(given, Mapping):
        return _LIMITS.validate_python(given)
    if not isinstance(given, str | Limits | None):
        raise ValueError("expected limits, such as {rpm: 600}, or the name of an account in limits")
    return given


def _format_forms(given: Any, _: Any) -> Any:
    if given is not None and not isinstance(given, str | Mapping):
        raise ValueError("expected module:PydanticClass, a .json file, or a JSON schema")
    return dict(given) if isinstance(given, Mapping) else given


def _message_forms(given: Any, _: Any) -> Any:
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, list) or not given or not all(isinstance(item, Mapping) for item in given):
        raise ValueError('expected messages, such as [{role: user, content: "{{ text }}"}], a file, or an expression')
    for number, message in enumerate(given):
        if not isinstance(message.get("role"), str):
            raise ValueError(f"message {number + 1} has no role: expected {{role: user, content: …}}")
    return [dict(message) for message in given]


def _null_in_words(given: Any) -> Any:
    return "null" if given is None else given  # YAML's null without quotes


Text = Annotated[str | None, WrapValidator(_text_or_reference)]
HeaderValue = Annotated[str | HeaderFromEnv, WrapValidator(_header_value)]
Format = Annotated[str | dict[str, Any] | None, WrapValidator(_format_forms)]
Messages = Annotated[str | list[dict[str, Any]] | None, WrapValidator(_message_forms)]
LimitsOrAccount = Annotated[Limits | str | None, WrapValidator(_limits_or_account)]


def _in_seconds(value: Any) -> Any:
    """``90s``, ``30m``, ``2h``, ``1d`` in seconds; anything else as it is."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([smhd])\s*", value) if isinstance(value, str) else None
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]] if found else value


class BatchConfig(_Section):
    """Whether a deployment's requests go through its provider's batch API, and how. ``batch: true`` is short for it."""

    enabled: bool = Field(False, description="Send through the batch API: at its price, within about a day")
    max_requests: int | None = Field(None, ge=1, description="Requests in a batch; null: as many as the provider takes")
    max_bytes: int | None = Field(None, ge=1, description="Bytes of a batch; null: as many as the provider takes")
    max_enqueued_tokens: int | None = Field(
        None, ge=1, description="Prompt tokens, estimated, in batches that are not back; null: no bound"
    )
    linger: float = Field(
        900.0,
        ge=0,
        description="Seconds that a batch waits for further requests, or a text such as 15m; it waits for none where "
        "none can come",
    )
    poll: float = Field(30.0, gt=0, description="Seconds between two looks at a batch, or a text such as 1m")
    max_wait: float | None = Field(
        None, gt=0, description="Seconds, or a text such as 6h, after which a batch is cancelled; null: wait for ever"
    )
    then: Literal["live", "error"] = Field("live", description="What becomes of its rows that have no answer by then")

    @field_validator("linger", "poll", "max_wait", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        return _in_seconds(value)


def _switch(given: Any) -> Any:
    return {"enabled": given} if isinstance(given, bool) else given


class DeploymentEntry(_Section):
    """One replica or account. Limits belong to it, or to an account in ``limits`` that several deployments share."""

    model: str = Field(description="provider/model, as LiteLLM writes it; simulator/NAME: the embedded simulator")
    api_base: Text = Field(None, description="Base URL; null: the provider's own; 'simulator': the embedded one")
    api_key_env: str | None = Field(None, description="Environment variable that holds the key; null: the usual one")
    transport: TransportKind = Field("auto", description="native: OpenAI's wire format; litellm: any other provider")
    weight: float = Field(1.0, ge=0, description="Share of the load; 0: it gets no request")
    max_parallel_requests: int | None = Field(None, ge=1, description="Requests in flight at once, over all stages")
    limits: LimitsOrAccount = Field(None, description="Limits of its own, or the name of its account")
    headers: dict[str, HeaderValue] = Field(
        default_factory=dict, description="Further HTTP headers: NAME: text, or NAME: {env: VARIABLE}"
    )
    input_cost_per_token: float | None = Field(None, ge=0, description="US dollars, instead of the price list's")
    output_cost_per_token: float | None = Field(None, ge=0, description="US dollars, instead of the price list's")
    ca_bundle: str | None = Field(None, description="A PEM file or folder with further authorities for TLS")
    max_response_bytes: int = Field(
        MAX_RESPONSE_BYTES, ge=1, description="The most bytes that an answer may have, once it is decompressed"
    )
    batch: Annotated[BatchConfig, BeforeValidator(_switch)] = Field(
        default_factory=BatchConfig, description="Send through the provider's batch API: true, or its settings"
    )

    @model_validator(mode="before")
    @classmethod
    def _simulated(cls, given: Any) -> Any:
        """``simulator/NAME`` says both: the model's name, and that the embedded simulator answers."""
        model = given.get("model") if isinstance(given, Mapping) else None
        if not isinstance(model, str) or not model.startswith(SIMULATED):
            return given
        if model == SIMULATED:
            raise ValueError(f"{model} has no name behind it: write {model}NAME, any name will do")
        if given.get("api_base") not in (None, "simulator"):
            raise ValueError(
                f"{model} is the embedded simulator, but api_base names a server: write the name that the "
                "server has for its model, such as hosted_vllm/NAME"
            )
        return {**given, "model": f"hosted_vllm/{model.removeprefix(SIMULATED)}", "api_base": "simulator"}

    def deployment_config(self) -> DeploymentConfig:
        """The same deployment as ``LMClient`` takes it. Limits of its own stand beside the other fields there.

        Of an account's limits it says nothing: those belong to the account.
        """
        own = self.limits if isinstance(self.limits, Limits) else Limits()
        return DeploymentConfig(**self.model_dump(exclude={"limits", "batch"}), **dataclasses.asdict(own))


class ModelEntry(_Section):
    """A logical model: the deployments that serve it, and what each request to it has in common."""

    deployments: list[str] = Field(min_length=1, description="Labels of the deployments that serve it")
    routing_strategy: RoutingStrategy = Field("simple-shuffle", description="How a deployment is chosen")
    endpoint: Endpoint = Field("chat_completion", description="Which API generate stages use")
    params: dict[str, Any] = Field(default_factory=dict, description="Wire parameters: temperature, max_tokens, …")
    max_retries: int = Field(3, ge=0, description="Attempts after the first")
    timeout: float | None = Field(
        600.0, gt=0, description="Seconds for one attempt, and for one call of a mapper; null waits for ever"
    )
    max_pause: float = Field(
        600.0, ge=0, description="Longest wait in seconds that a deployment may ask for; a longer one is a failure"
    )
    max_wait_unreachable: float | None = Field(
        600.0,
        ge=0,
        description="Seconds to wait for deployments that cannot be reached, then the run stops; null waits for ever; "
        "0 lets rows fail",
    )


class _Stage(_Section):
    rows: str | None = Field(None, description="Whose rows it takes: source, or a sql stage; null: by what it names")
    where: str | None = Field(None, description="SQL over source and upstream columns; rows it leaves out are skipped")
    max_parallel_requests: int = Field(64, ge=1, description="Requests of this stage in flight at once")


class _ModelStage(_Stage):
    model: str = Field(description="One of models, or provider/name as a provider serves it")
    params: dict[str, Any] = Field(default_factory=dict, description="Wire parameters, over the model's")


class GenerateStage(_ModelStage):
    """Makes a prompt of each row and asks for text, and for ``parsed`` if a response format is given."""

    kind: Literal["generate"] = "generate"
    prompt: str | None = Field(None, description="A template, or a file that holds one (.jinja, .j2, .txt, .md)")
    messages: Messages = Field(
        None,
        description="Instead of prompt: a list of messages with templates in their texts, a file that holds one "
        "(.yaml, .json, .jinja …), or an expression that gives one",
    )
    mapper: str | None = Field(
        None,
        description="Instead of prompt: module:function → {input, metadata}; 'row' takes the row's own fields",
    )
    system: str | None = Field(None, description="A template, or a file, for the system message")
    response_format: Format = Field(None, description="module:PydanticClass, a .json schema file, or a JSON schema")
    on_invalid: Annotated[Literal["null", "retry", "error"], BeforeValidator(_null_in_words)] = Field(
        "null", description="What to do if the answer does not satisfy it"
    )
    parse_json: bool = Field(False, description="Parse the answer as JSON, without asking the server for a format")

    @model_validator(mode="after")
    def _one_of(self) -> GenerateStage:
        if (self.prompt, self.messages, self.mapper).count(None) != 2:
            raise ValueError("give either 'prompt' (a template or its file), 'messages' (a list) or 'mapper'")
        if "" in (self.prompt, self.messages, self.mapper):
            raise ValueError("the prompt is empty. It is a template such as '{{ text }}', or the file that holds one")
        return self


class EmbedStage(_ModelStage):
    """Makes a text of each row and asks for its embedding, ``micro_batch_size`` texts in a request."""

    kind: Literal["embed"] = "embed"
    text: str | None = Field(None, description="A template, or a file that holds one")
    mapper: str | None = Field(
        None, description="Instead of text: module:function → {input, metadata}; 'row' takes the row's own text"
    )
    micro_batch_size: int = Field(32, ge=1, description="Texts in one request")

    @model_validator(mode="after")
    def _one_of(self) -> EmbedStage:
        if (self.text is None) == (self.mapper is None):
            raise ValueError("give either 'text' (a template or its file) or 'mapper'")
        return self


class TranscribeStage(_ModelStage):
    """Transcribes the audio file that each row names."""

    kind: Literal["transcribe"] = "transcribe"
    audio: str | None = Field(None, description="A template that gives the path of the clip")
    mapper: str | None = Field(
        None,
        description="Instead of audio: module:function → {input, metadata}; 'row' takes the row's own path",
    )
    max_transcription_bytes: int | None = Field(
        25 * 1024 * 1024, ge=1, description="Larger clips are refused; null sends any"
    )

    @model_validator(mode="after")
    def _one_of(self) -> TranscribeStage:
        if (self.audio is None) == (self.mapper is None):
            raise ValueError("give either 'audio' (a template) or 'mapper'")
        return self


class PythonStage(_Stage):
    """Calls a function of the user's with each row."""

    kind: Literal["python"] = "python"
    function: str = Field(description="module:name of a function, sync or async: a row as a dict → a value")
    reads: list[str] = Field(default_factory=list, description="Upstream stages whose columns the row has")
    columns: dict[str, str] | None = Field(
        None, description="Name → DuckDB type of each key of the returned dict; null: one JSON column 'value'"
    )
    max_retries: int = Field(3, ge=0, description="Calls after the first")
    timeout: float | None = Field(600.0, gt=0, description="Seconds for one call; null waits for ever")


class SqlStage(_Section):
    """A query over the source and upstream stages. Later stages take its rows."""

    kind: Literal["sql"] = "sql"
    query: str = Field(description="SELECT over source and stage tables, or a .sql file that holds it")


StageConfig = Annotated[
    GenerateStage | EmbedStage | TranscribeStage | PythonStage | SqlStage, Field(discriminator="kind")
]
ModelStageConfig = GenerateStage | EmbedStage | TranscribeStage
RowStageConfig = ModelStageConfig | PythonStage
STAGE_KINDS: dict[str, type[_Section]] = {
    "generate": GenerateStage,
    "embed": EmbedStage,
    "transcribe": TranscribeStage,
    "python": PythonStage,
    "sql": SqlStage,
}


class GuardsConfig(_Section):
    """When a run stops by itself. It then drains, keeps everything and exits with 4. ``null``: no such guard."""

    max_cost_usd: float | None = Field(None, gt=0, description="US dollars, over all sessions of the run")
    max_error_rate: float | None = Field(None, gt=0, le=1, description="Share of a session's row states that failed")
    max_errors: int | None = Field(None, ge=1, description="Failed row states of a session")
    first_errors: int | None = Field(
        20,
        ge=1,
        description="The first so many rows of a stage, if all fail with one kind of error that no retry mends",
    )
    max_duration: float | None = Field(
        None, gt=0, description="Seconds of a session, or a text such as 90s, 30m, 2h, 1d"
    )

    @field_validator("max_duration", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        return _in_seconds(value)


class SinkConfig(_Section):
    """A file of a table's rows, written when the run ends."""

    path: str = Field(description=".parquet, .csv, .tsv or .jsonl; relative to the run's folder")
    table: str = Field("results", description="results, a stage, or any other table or view of the run")
    columns: list[str] | None = Field(None, description="Which columns, in this order; null: all")
    where: str | None = Field(None, description="SQL condition over the table's columns")


class StoreConfig(_Section):
    """How run.duckdb is written."""

    memory_limit: str = Field(
        "256MB", description="DuckDB's memory; beyond it, it spills to disk. Raised if rows are too long for it"
    )
    threads: int = Field(2, ge=1, description="DuckDB's threads")
    commit_interval: float = Field(0.1, gt=0, description="Seconds between group commits")


class EngineConfig(_Section):
    """Which processes send the requests. It changes no answer: a run that one engine began, another continues."""

    kind: Literal["process", "local", "ray"] = Field(
        "process",
        description="process: the run's own; local: workers, which are processes of this machine; ray: workers on Ray",
    )
    workers: int | Literal["auto"] = Field(
        "auto",
        description="How many; auto: one for each processor, or as many as the cluster has room for. "
        "2 or more are local ones, if not said",
    )
    silence: float = Field(
        30.0, gt=0, description="Seconds without a word after which a worker counts as lost, or a text such as 30s, 2m"
    )
    max_lost: int = Field(
        20, ge=1, description="Workers lost in a row, with no row finished in between, that stop the run"
    )
    address: str = Field(
        "local",
        min_length=1,
        description="With ray: local starts a Ray of this machine for the run, auto takes the cluster of which this "
        "machine is a node, HOST:PORT that one",
    )
    cpus: float = Field(1.0, ge=0, description="With ray: processors that each worker takes of its node")
    resources: dict[str, float] = Field(
        default_factory=dict, description="With ray: further resources that each worker takes, by Ray's names"
    )
    working_dir: Literal["ship", "shared"] = Field(
        "ship",
        description="With ray on a cluster. ship: the project's folder is sent to the nodes, without .env files and "
        "outputs/; shared: it is on each of them, under the same path",
    )

    @field_validator("address")
    @classmethod
    def _of_a_cluster(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                "expected local, auto or HOST:PORT. The run has to be on a node of the cluster: neither Ray Client "
                "(ray://) nor the URL of its dashboard will do"
            )
        if value not in ("local", "auto") and not re.fullmatch(r"\S+:\d+", value):
            raise ValueError("expected local, auto, or the HOST:PORT of a cluster's head, such as 10.0.0.1:6379")
        return value

    @field_validator("resources")
    @classmethod
    def _amounts(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if amount < 0:
                raise ValueError(f"{name}: expected 0 or more, not {amount:g}")
        return value

    @field_validator("silence", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        return _in_seconds(value)

    @field_validator("workers", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError("expected a number of workers from 1, or auto")
        return value


class NotifyConfig(_Section):
    """Who is told how a run has ended: a URL gets its facts as JSON (POST), a command has them on stdin."""

    done: str | None = Field(None, description="URL or command, where every row has settled, none with an error")
    failed: str | None = Field(None, description="URL or command, where rows have failed, or the run has crashed")
    stopped: str | None = Field(
        None, description="URL or command, where a guard or somebody has stopped it, or it waits for its batches"
    )


class TelemetryConfig(_Section):
    """Where a run's metrics and traces are seen by others' tools; it takes ``pip install 'infermesh[telemetry]'``."""

    prometheus: int | str | None = Field(
        None, description="A port on which Prometheus finds /metrics while the run goes on; or HOST:PORT"
    )
    otlp: str | None = Field(
        None, description="Base URL of an OTLP collector over HTTP (http://localhost:4318): metrics and spans"
    )

    @field_validator("prometheus", mode="before")
    @classmethod
    def _port(cls, value: Any) -> Any:
        port = str(value).rpartition(":")[2]
        if value is not None and (isinstance(value, bool) or not port.isdecimal() or int(port) > 65535):
            raise ValueError("expected a port, such as 9464, or HOST:PORT, such as 0.0.0.0:9464")
        return value

    @field_validator("otlp")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s]+", value):
            raise ValueError("expected a URL, such as http://localhost:4318")
        return value


class Experiment(_Section):
    """One experiment: the rows, who answers, and what happens to each row."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the folder below outputs/")
    source: SourceConfig = Field(description="Where rows come from")
    limits: dict[str, AccountLimits] = Field(
        default_factory=dict, description="Accounts that several deployments share"
    )
    deployments: dict[str, DeploymentEntry] = Field(default_factory=dict, description="Replicas and accounts, by label")
    models: dict[str, ModelEntry] = Field(default_factory=dict, description="Logical models; none if no stage asks one")
    stages: dict[str, StageConfig] = Field(min_length=1, description="What happens to each row; a table for each")
    reuse: str = Field(
        "none", description="Take the answers of identical requests from earlier runs: none, latest, all, or a folder"
    )
    guards: GuardsConfig = Field(default_factory=lambda: GuardsConfig())
    sinks: dict[str, SinkConfig] = Field(default_factory=dict, description="Files to write when the run ends")
    allow_paths: list[str] = Field(
        default_factory=list,
        description="Further folders that rows may name files in, besides the project's and the source's",
    )
    keep_errors: bool = Field(False, description="On resume, leave failed rows as they are")
    detach_batches: bool = Field(
        False, description="End once every batch is submitted; infermesh resume collects them (run --detach-batches)"
    )
    notify: NotifyConfig = Field(default_factory=lambda: NotifyConfig())
    telemetry: TelemetryConfig = Field(default_factory=lambda: TelemetryConfig())
    report: bool = Field(True, description="Write report.html, a page over the run, into its folder when it ends")
    store: StoreConfig = Field(default_factory=lambda: StoreConfig())
    engine: EngineConfig = Field(default_factory=lambda: EngineConfig())
    simulator: SimulatorSettings = Field(default_factory=SimulatorSettings)

    @property
    def uses_simulator(self) -> bool:
        """Whether a deployment is the embedded simulator."""
        return any(entry.api_base == "simulator" for entry in self.deployments.values())

    def limits_of(self, label: str) -> Limits | None:
        """A deployment's limits: its own, or its account's. ``None``: it has none."""
        limits = self.deployments[label].limits
        return self.limits[limits] if isinstance(limits, str) else limits

    def members_of(self, account: str) -> list[str]:
        """The labels of the deployments that share an account."""
        return [label for label, entry in self.deployments.items() if entry.limits == account]
