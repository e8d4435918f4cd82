"""Requests and answers of Gemini's `generateContent`.

Source: https://ai.google.dev/api/generate-content, and what the google-genai SDK and LiteLLM send and read. Names may
be in camelCase or in snake_case, as protobuf's JSON has it.
"""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from infermesh.simulator.generation import FREE_JSON, Generation
from infermesh.simulator.wire import Tool, ToolChoice

__all__ = ["GeminiRequest", "content"]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True, alias_generator=to_camel)


class GeminiPart(_Wire):
    text: str | None = None


class Content(_Wire):
    role: str = "user"
    parts: list[GeminiPart] = Field(min_length=1)

    def text(self) -> str:
        """Return its texts. Images, sounds and calls have none."""
        return "\n".join(part.text for part in self.parts if part.text)


class GenerationConfig(_Wire):
    max_output_tokens: int | None = Field(default=None, ge=1)
    candidate_count: int | None = Field(default=None, ge=1, le=8)
    response_mime_type: str | None = None
    response_schema: dict[str, Any] | None = None
    response_json_schema: Any = None


class Declaration(_Wire):
    name: str
    parameters: dict[str, Any] | None = None
    parameters_json_schema: Any = None


class Declarations(_Wire):
    function_declarations: list[Declaration] = Field(default_factory=list)


class Calling(_Wire):
    mode: str = "AUTO"
    allowed_function_names: list[str] | None = None


class ToolConfig(_Wire):
    function_calling_config: Calling | None = None


class GeminiRequest(_Wire):
    """`POST /v1beta/models/{model}:generateContent`; the model stands in the path."""

    model: str = Field(min_length=1)
    contents: list[Content] = Field(min_length=1)
    system_instruction: Content | None = None
    generation_config: GenerationConfig = Field(default_factory=GenerationConfig)
    tools: list[Declarations] | None = None
    tool_config: ToolConfig | None = None

    def texts(self) -> list[str]:
        """Return all that it says."""
        system = [self.system_instruction] if self.system_instruction is not None else []
        return [each.text() for each in (*system, *self.contents)]

    def tools_and_choice(self) -> tuple[list[Tool], str | ToolChoice | None]:
        """Return the tools and the choice as OpenAI says them."""
        tools = [
            Tool(name=each.name, parameters=_as_json_schema(each.parameters) or each.parameters_json_schema)
            for some in self.tools or []
            for each in some.function_declarations
        ]
        calling = None if self.tool_config is None else self.tool_config.function_calling_config
        if calling is None or calling.mode not in ("ANY", "VALIDATED"):
            return tools, "none" if calling is not None and calling.mode == "NONE" else None
        allowed = calling.allowed_function_names
        return tools, ToolChoice(type="function", name=allowed[0]) if allowed else "required"

    def schema_of_answer(self) -> Any:
        """Return the JSON schema of the answer. None: free text."""
        config = self.generation_config
        if config.response_mime_type != "application/json":
            return None
        given = config.response_json_schema
        return given if given is not None else _as_json_schema(config.response_schema) or FREE_JSON


def content(head: dict[str, Any], choices: list[Generation], prompt_tokens: int) -> dict[str, Any]:
    """Return the whole answer."""
    thoughts = sum(choice.reasoning_tokens for choice in choices)
    written = sum(choice.tokens for choice in choices) - thoughts
    usage = {
        "promptTokenCount": prompt_tokens,
        "candidatesTokenCount": written,
        "totalTokenCount": prompt_tokens + written + thoughts,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt_tokens}],
    }
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    candidates = [
        {
            "content": {"parts": _parts(choice), "role": "model"},
            "finishReason": "MAX_TOKENS" if choice.cut else "STOP",
            "index": index,
        }
        for index, choice in enumerate(choices)
    ]
    return {
        "candidates": candidates,
        "usageMetadata": usage,
        "modelVersion": head["model"],
        "responseId": head["id"],
    }


def _parts(choice: Generation) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if choice.reasoning:
        parts.append({"text": choice.reasoning, "thought": True})
    if choice.tool is None:
        return [*parts, {"text": choice.text}]
    # What maxOutputTokens cuts off is no JSON: no arguments then, as nobody can say what they would have been.
    arguments = {} if choice.cut else orjson.loads(choice.text)
    return [*parts, {"functionCall": {"name": choice.tool, "args": arguments}}]


def _as_json_schema(schema: Any) -> Any:
    """Turn OpenAPI's words, which Gemini takes (`"type": "STRING"`, `nullable`), into JSON Schema's."""
    if isinstance(schema, list):
        return [_as_json_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name == "type" and isinstance(value, str):
            found[name] = value.lower()
        elif name in ("enum", "required", "propertyOrdering", "property_ordering", "example", "default"):
            found[name] = value
        elif name == "properties" and isinstance(value, dict):
            found[name] = {each: _as_json_schema(inner) for each, inner in value.items()}
        else:
            found[name] = _as_json_schema(value)
    if found.pop("nullable", False) and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    for name in ("minItems", "maxItems", "minLength", "maxLength"):  # int64, which JSON of protobuf has as texts
        if isinstance(found.get(name), str):
            found[name] = int(found[name])
    return found
