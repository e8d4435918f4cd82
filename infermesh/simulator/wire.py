"""The fields of OpenAI's and Anthropic's requests that the simulator reads. It ignores all others."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingsRequest",
    "Message",
    "MessagesRequest",
    "ResponseFormat",
    "ResponsesRequest",
    "TranscriptionForm",
]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, populate_by_name=True)


class Part(_Wire):
    type: str
    text: str | None = None


class Message(_Wire):
    """One message, or one input item of the Responses API, which may have no role."""

    role: str = ""
    content: str | list[Part] | None = None

    def text(self) -> str:
        """Return the message's text. Images and sounds have none."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or () if part.text)


class ChatMessage(Message):
    role: str = Field(min_length=1)


class JsonSchema(_Wire):
    definition: dict[str, Any] | bool | None = Field(default=None, alias="schema")


class ResponseFormat(_Wire):
    """Chat nests the schema in `json_schema`; the Responses API has it beside `type`."""

    type: str
    json_schema: JsonSchema | None = None
    definition: dict[str, Any] | bool | None = Field(default=None, alias="schema")


class Function(_Wire):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Wire):
    """Chat nests the function in `function`; the Responses API has it flat."""

    type: str = "function"
    function: Function | None = None
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None

    def resolved(self) -> Function | None:
        """Return the function, from either form. None: the tool is no function."""
        if self.function is not None or self.name is None:
            return self.function
        return Function(name=self.name, description=self.description, parameters=self.parameters)


class ToolName(_Wire):
    name: str


class ToolChoice(_Wire):
    type: str
    function: ToolName | None = None
    name: str | None = None

    def wanted(self) -> str | None:
        return self.function.name if self.function else self.name


class StreamOptions(_Wire):
    include_usage: bool | None = None


class ChatRequest(_Wire):
    """`POST /v1/chat/completions`."""

    model: str = Field(min_length=1)
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    service_tier: str | None = None


class CompletionRequest(_Wire):
    """`POST /v1/completions`."""

    model: str = Field(min_length=1)
    prompt: str | list[str] | list[int] | list[list[int]]
    # OpenAI's default.
    max_tokens: int | None = Field(default=16, ge=1)
    n: int | None = Field(default=None, ge=1, le=128)
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class TextOptions(_Wire):
    format: ResponseFormat | None = None


class ResponsesRequest(_Wire):
    """`POST /v1/responses`."""

    model: str = Field(min_length=1)
    input: str | list[Message]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    text: TextOptions | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None


class MessageTool(_Wire):
    name: str
    input_schema: dict[str, Any] | None = None


class OutputConfig(_Wire):
    format: ResponseFormat | None = None


class MessagesRequest(_Wire):
    """Anthropic's `POST /v1/messages`."""

    model: str = Field(min_length=1)
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    system: str | list[Part] | None = None
    stream: bool | None = None
    tools: list[MessageTool] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: ResponseFormat | None = None  # its name in the beta, which LiteLLM sends


class EmbeddingsRequest(_Wire):
    """`POST /v1/embeddings`."""

    model: str = Field(min_length=1)
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: str | None = Field(default=None, pattern="^(float|base64)$")
    dimensions: int | None = Field(default=None, ge=1, le=65536)


class TranscriptionForm(_Wire):
    """The text fields of `POST /v1/audio/transcriptions`."""

    model: str = Field(min_length=1)
    response_format: str = Field(default="json", pattern="^(json|verbose_json|text)$")
    language: str | None = None
