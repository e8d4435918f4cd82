"""What a simulator does, as one validated object. Cheap to import."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["BatchSettings", "Endpoint", "Faults", "SimulatorSettings", "all_settings"]

Endpoint = Literal[
    "chat",
    "completions",
    "responses",
    "embeddings",
    "transcriptions",
    "messages",
    "files",
    "batches",
    "message_batches",
    "generate_content",
    "gemini_batches",
]
Probability = Annotated[float, Field(ge=0, le=1)]


class Faults(BaseModel):
    """How often a request meets each fault.

    At most one fault happens to a request. Each endpoint has its own random stream, so that the n-th request to an
    endpoint meets the same fault in every run with the same seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate_limit: Probability = Field(default=0.0, description="429, before any work.")
    unavailable: Probability = Field(default=0.0, description="503, before any work.")
    server_error: Probability = Field(default=0.0, description="500, after the service time; it counts to the quota.")
    hang: Probability = Field(default=0.0, description="No answer until the client leaves, or `hang_s` passes.")
    drop: Probability = Field(default=0.0, description="The socket is closed without an answer.")
    truncate: Probability = Field(default=0.0, description="A 200 whose connection closes in the middle of the body.")
    malformed: Probability = Field(default=0.0, description="A 200 whose body is not valid JSON.")
    invalid_json_content: Probability = Field(
        default=0.0, description="A sound 200 whose message is not JSON although a schema was asked for."
    )
    retry_after_s: float | None = Field(
        default=1.0, ge=0, description="Retry-After of `rate_limit` and `unavailable`, in seconds; null sends none."
    )
    hang_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds after which a hanging request's socket is closed; null waits for the client.",
    )
    endpoints: list[Endpoint] | None = Field(default=None, description="Which endpoints have faults; null means all.")

    @model_validator(mode="after")
    def _at_most_certain(self) -> Self:
        if sum(probability for _, probability in self.chances()) > 1 + 1e-9:
            raise ValueError("the probabilities of the faults must not add up to more than 1")
        return self

    def chances(self) -> list[tuple[str, float]]:
        """Name and probability of each fault, in a fixed order."""
        names = (
            "rate_limit",
            "unavailable",
            "server_error",
            "hang",
            "drop",
            "truncate",
            "malformed",
            "invalid_json_content",
        )
        return [(name, getattr(self, name)) for name in names]


class BatchSettings(BaseModel):
    """What batches take, what they allow, and how they fail.

    A line's fault depends on the seed, on the number of its batch and on its `custom_id`: a line that is sent again in
    another batch draws anew. The faults of calls (`lost_creates` …) are drawn call by call.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    validating_s: float = Field(default=0.0, ge=0, description="Seconds in state `validating`.")
    processing_s: float = Field(
        default=0.0, ge=0, description="Seconds in state `in_progress`, over which the lines are answered one by one."
    )
    finalizing_s: float = Field(default=0.0, ge=0, description="Seconds in state `finalizing`.")
    cancelling_s: float = Field(default=0.0, ge=0, description="Seconds in state `cancelling`.")
    expires_s: float = Field(
        default=86400.0,
        gt=0,
        description="Seconds after which a batch expires; answered lines are kept, but for Gemini's.",
    )

    max_requests: int | None = Field(
        default=None,
        ge=1,
        description="Most lines of a batch; null is the provider's: 50000, Anthropic's 100000, Gemini's none.",
    )
    max_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes of a batch; null is the provider's: 200 MB, Anthropic's 256 MB, Gemini's 2 GB.",
    )
    max_enqueued_tokens: int | None = Field(
        default=None, ge=1, description="Most prompt tokens in all batches that have not ended; null has no limit."
    )
    over_limit: Literal["refuse", "fail"] = Field(
        default="refuse",
        description="What a batch beyond `max_enqueued_tokens` meets: `refuse` is a 429, `fail` a failed validation.",
    )
    poll_after_s: float | None = Field(
        default=None, ge=0, description="Retry-After of a batch that has not ended, in seconds; null sends none."
    )

    invalid_marker: str | None = Field(
        default=None,
        min_length=1,
        description="A line with this text fails its batch's validation; Anthropic and Gemini refuse to create it.",
    )
    named_lines: int = Field(default=1, ge=1, description="Most invalid lines that a failed batch names.")
    refused_lines: Probability = Field(default=0.0, description="Share of lines that end in a 400.")
    failed_lines: Probability = Field(default=0.0, description="Share of lines that end in a 500.")
    missing_lines: Probability = Field(default=0.0, description="Share of lines that are in no file, though counted.")
    doubled_lines: Probability = Field(default=0.0, description="Share of lines that are in a file twice.")
    shuffle: bool = Field(default=False, description="Answer and write the lines in another order than they came in.")
    loose_lines: bool = Field(
        default=False,
        description="Results with CRLF between lines and none after the last, which some JSONL readers cannot read.",
    )

    lost_uploads: Probability = Field(
        default=0.0, description="Share of uploads whose answer is lost; the file is kept."
    )
    lost_creates: Probability = Field(default=0.0, description="Share of creates whose answer is lost; the batch runs.")
    unlisted: Probability = Field(default=0.0, description="Share of batches that no listing shows.")
    not_found: Probability = Field(
        default=0.0, description="Share of reads of a batch that get a 404 although it is there."
    )
    cut_downloads: Probability = Field(default=0.0, description="Share of downloads whose connection breaks half-way.")
    short_downloads: Probability = Field(
        default=0.0, description="Share of downloads that end well, but within a line half-way."
    )
    cancel_loses: bool = Field(default=False, description="A cancelled batch gives back nothing, answered or not.")
    late_output_s: float = Field(
        default=0.0, ge=0, description="Seconds after its end in which Gemini's batch does not yet name its results."
    )
    azure: bool = Field(
        default=False, description="Batches as Azure's samples show them: `Completed`, ISO times, an empty error file."
    )


class SimulatorSettings(BaseModel):
    """What a simulated service knows, how fast it is, what it allows, and how it fails."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(
        default=0, description="Decides faults, latencies and what of an answer is not quoted from the prompt."
    )
    models: list[str] | None = Field(
        default=None, description="Model names that are served, 404 for others; null serves any name."
    )
    api_key: str | None = Field(
        default=None, description="The bearer token to ask for, else 401; null lets everybody in."
    )
    max_body_bytes: int = Field(default=64 * 2**20, ge=1, description="Largest request body, else 413.")

    latency_s: float = Field(default=0.0, ge=0, description="Median time to the first token, in seconds.")
    latency_spread: float = Field(
        default=0.0, ge=0, le=5, description="Sigma of the lognormal latency: 0 is constant, 0.5 a usual service."
    )
    audio_latency_factor: float = Field(
        default=1.0, ge=0, description="What `latency_s` is multiplied by for transcriptions."
    )
    embedding_latency_factor: float = Field(
        default=1.0, ge=0, description="What `latency_s` is multiplied by for embeddings."
    )
    tokens_per_second: float | None = Field(
        default=None, gt=0, description="Decode speed of one request (one choice); null decodes at once."
    )
    capacity: int | None = Field(
        default=None,
        ge=1,
        description="Requests served at once, the others wait first in, first out; null has no limit.",
    )

    rpm: int | None = Field(
        default=None, ge=1, description="Requests in any 60 seconds, over all endpoints; null: no quota."
    )
    tpm: int | None = Field(
        default=None,
        ge=1,
        description="Tokens (usage.total_tokens) in any 60 seconds, over all endpoints; null: no quota.",
    )

    context_window: int | None = Field(
        default=None, ge=1, description="Most prompt tokens, else 400; null has no limit."
    )
    filter_marker: str | None = Field(
        default=None, min_length=1, description="A prompt that contains this text gets a 400 with code content_filter."
    )
    bad_texts: str | None = Field(
        default=None,
        min_length=1,
        description="An embeddings request with this text in any input gets a 400 for all of it.",
    )
    answer_sentences: int = Field(
        default=2, ge=1, description="Sentences of the prompt that a free-text answer quotes."
    )
    reasoning_tokens: int = Field(
        default=0, ge=0, description="Tokens of reasoning before each answer; 0 is a plain model."
    )
    embedding_dimensions: int = Field(
        default=64, ge=1, le=65536, description="Length of a vector, unless the request says it."
    )
    language: str = Field(default="en", description="Language of a clip that does not state its own (RIFF `ILNG`).")

    faults: Faults = Field(default_factory=lambda: Faults(), description="How often requests fail, and how.")
    batches: BatchSettings = Field(default_factory=lambda: BatchSettings(), description="What the batch APIs do.")


def all_settings(model: type[BaseModel] = SimulatorSettings, prefix: str = "") -> list[tuple[str, Any, str]]:
    """Name (with points), default and description of each setting."""
    found: list[tuple[str, Any, str]] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += all_settings(inner, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", field.get_default(call_default_factory=True), field.description or ""))
    return found
