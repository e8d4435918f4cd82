"""How many tokens to reserve for a request whose answer nobody has seen yet."""

from __future__ import annotations

__all__ = ["TokenEstimate"]

# The learned values start as if so many answers of this size had been seen: modest, since overuse is paid back anyway
# while a generous guess halves the throughput of the first minute.
FIRST_OUTPUT_TOKENS = 256.0
PRIOR_PROMPT_TOKENS = 500.0

# Weight of the newest answer: the last thirty or so decide, so that a run that turns to longer rows follows within
# seconds.
ALPHA = 1 / 32


class TokenEstimate:
    """Exponentially weighted means of what answers really used.

    ``ratio`` is actual over estimated prompt tokens, as a ratio of means (a mean of ratios would let the shortest
    prompts decide); ``output`` is the mean completion of requests that set no maximum.
    """

    __slots__ = ("_actual", "_default_output", "_estimated", "_mean_output", "_seen", "ratio")

    def __init__(self, default_output_tokens: int | None) -> None:
        self._default_output = default_output_tokens
        self._mean_output = FIRST_OUTPUT_TOKENS
        self._seen = 0
        self._actual = PRIOR_PROMPT_TOKENS
        self._estimated = PRIOR_PROMPT_TOKENS
        self.ratio = 1.0

    @property
    def output(self) -> float:
        """Tokens to reserve for an answer without a maximum."""
        return self._mean_output if self._default_output is None else self._default_output

    def learn(self, estimated: int, prompt_tokens: int, completion_tokens: int, *, open_ended: bool) -> None:
        """Take in one answer. ``open_ended``: its request set no maximum."""
        if estimated > 0 and prompt_tokens > 0:
            self._actual += ALPHA * (prompt_tokens - self._actual)
            self._estimated += ALPHA * (estimated - self._estimated)
            self.ratio = self._actual / self._estimated
        if open_ended:
            self._seen += 1
            self._mean_output += max(1 / (self._seen + 1), ALPHA) * (completion_tokens - self._mean_output)
