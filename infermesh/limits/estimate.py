"""How many tokens to reserve for a request before its answer is known."""

from __future__ import annotations

__all__ = ["TokenEstimate"]

# Where the means start. Low values: overuse is paid back by later requests anyway, while too high a guess halves the
# throughput of the first minute.
FIRST_OUTPUT_TOKENS = 256.0
PRIOR_PROMPT_TOKENS = 500.0

# Weight of the newest answer. The last thirty or so decide, so that the estimate follows within seconds when a run
# comes to longer rows.
ALPHA = 1 / 32


class TokenEstimate:
    """Exponentially weighted means of what answers really used.

    ``ratio`` is actual over estimated prompt tokens. It is a ratio of means, because in a mean of ratios the shortest
    prompts would decide. ``output`` is the mean completion of requests that set no maximum.
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
        """Tokens to reserve for an answer whose request sets no maximum."""
        return self._mean_output if self._default_output is None else self._default_output

    def learn(self, estimated: int, prompt_tokens: int, completion_tokens: int, *, open_ended: bool) -> None:
        """Learn from one answer. ``open_ended``: its request set no maximum."""
        if estimated > 0 and prompt_tokens > 0:
            self._actual += ALPHA * (prompt_tokens - self._actual)
            self._estimated += ALPHA * (estimated - self._estimated)
            self.ratio = self._actual / self._estimated
        if open_ended:
            self._seen += 1
            self._mean_output += max(1 / (self._seen + 1), ALPHA) * (completion_tokens - self._mean_output)
