"""One answer of the simulated model, before it takes the shape of an endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from infermesh.simulator.content import Prompt, count_tokens, occurrences, take_tokens
from infermesh.simulator.errors import ApiError
from infermesh.simulator.schema import SchemaError, fill
from infermesh.simulator.settings import SimulatorSettings
from infermesh.simulator.strings import Draft
from infermesh.simulator.wire import Function, Tool, ToolChoice

__all__ = ["FREE_JSON", "Generation", "Task", "choose_tool", "generate"]

# What `{"type": "json_object"}` asks for: any object.
FREE_JSON: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@dataclass(slots=True)
class Task:
    """What the model is asked to do.

    Attributes
    ----------
    prompt
        The last user message.
    max_tokens
        The most that reasoning and answer may have together. None: no bound.
    schema
        What the JSON of the answer has to satisfy. None: free text.
    tool
        The function to call. None: an answer in words.
    spoil
        Whether to break an answer in JSON (fault `invalid_json_content`).
    """

    prompt: Prompt
    max_tokens: int | None = None
    schema: Any = None
    tool: Function | None = None
    spoil: bool = False

    @property
    def spoiled(self) -> bool:
        """Whether there is an answer in JSON to break."""
        return self.spoil and self.schema is not None and self.tool is None


@dataclass(slots=True)
class Generation:
    """One choice. `text` is the call's arguments if `tool` names a function; `tokens` includes the reasoning."""

    text: str
    reasoning: str
    reasoning_tokens: int
    tokens: int
    cut: bool
    tool: str | None


def generate(task: Task, settings: SimulatorSettings, variant: int = 0) -> Generation:
    """Write one choice. Another variant writes another one, if the prompt is long enough."""
    reasoning_tokens = settings.reasoning_tokens
    text = _write(task, settings, variant)
    wanted = reasoning_tokens + count_tokens(text)
    cut = task.max_tokens is not None and wanted > task.max_tokens
    if task.max_tokens is not None and cut:
        reasoning_tokens = min(reasoning_tokens, task.max_tokens)
        text = take_tokens(text, task.max_tokens - reasoning_tokens)
    return Generation(
        text=text,
        reasoning=_reason(task.prompt, reasoning_tokens) if reasoning_tokens else "",
        reasoning_tokens=reasoning_tokens,
        tokens=reasoning_tokens + count_tokens(text),
        cut=cut,
        tool=task.tool.name if task.tool else None,
    )


def _write(task: Task, settings: SimulatorSettings, variant: int) -> str:
    if task.tool is not None:
        return _json(task.tool.parameters or {"type": "object"}, task, settings, variant, "tools")
    if task.schema is None:
        return task.prompt.extract(settings.answer_sentences, variant)
    text = _json(task.schema, task, settings, variant, "response_format")
    # Prose in front makes it invalid JSON, whatever the schema. It is what models do.
    return "Here is the answer: " + text[: len(text) // 2] if task.spoiled else text


def _json(schema: Any, task: Task, settings: SimulatorSettings, variant: int, param: str) -> str:
    try:
        return orjson.dumps(fill(schema, Draft(task.prompt, settings.seed, variant))).decode()
    except (SchemaError, orjson.JSONEncodeError) as error:
        raise ApiError(400, f"Invalid schema: {error}", code="invalid_json_schema", param=param) from None


def _reason(prompt: Prompt, tokens: int) -> str:
    line = "The request is about " + ", ".join(prompt.keywords[:5]) + ". "
    return take_tokens(line * (tokens * 4 // len(line) + 1), tokens)


def choose_tool(prompt: Prompt, tools: list[Tool], choice: str | ToolChoice | None) -> Function | None:
    """Return the function that the request demands. None: it leaves the choice to the model.

    Raises
    ------
    ApiError
        400, if the function that is asked for is not among the tools.
    """
    functions = [function for tool in tools if (function := tool.resolved()) is not None]
    if isinstance(choice, ToolChoice) and (wanted := choice.wanted()) is not None:
        named = next((function for function in functions if function.name == wanted), None)
        if named is None:
            raise ApiError(400, f"Tool choice '{wanted}' not found in 'tools' parameter.", param="tool_choice")
        return named
    if choice != "required":
        return None
    if not functions:
        raise ApiError(400, "'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")

    def mentions(function: Function) -> int:
        return sum(occurrences(word, prompt.text) for word in function.name.split("_") if len(word) > 2)

    return max(functions, key=mentions)
