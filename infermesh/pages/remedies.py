"""What to do about each kind of error, in a sentence: the ``error_type`` of rows and requests."""

from __future__ import annotations

__all__ = ["remedy"]

_REMEDIES = {
    "authentication": "Put the right key into the environment (or the --env-file), then try these again.",
    "permission": "The account may not use this model, or has no credit left. Settle that with the provider first.",
    "not_found": "Look at the name in model, and at api_base: infermesh doctor lists what the server serves.",
    "bad_request": "The server refused the request, mostly for a parameter. Its message says why.",
    "context_length": "Shorten the prompt, lower max_tokens, or give these rows a model with a larger window.",
    "content_filter": "The provider's filter refused. To try again helps seldom: another wording or model may.",
    "rate_limit": "Set limits (rpm, tpm) to what the account has, so that requests wait here and are not refused.",
    "timeout": "Raise timeout, ask for fewer tokens, or lower max_parallel_requests: a full server is slow.",
    "connection": "Look whether the server runs and can be reached: infermesh doctor tries. Then try these again.",
    "server": "The server's own log has the reason; often it is out of memory. Then try these again.",
    "malformed_response": "What came is no answer of the protocol. Is api_base right, and is a proxy in between?",
    "unfinished": "The server broke the answer off. Look at its log; then try these again.",
    "invalid_answer": "The answer does not fit the response format. Raise max_tokens, or make the format simpler.",
    "no_deployment": "Every deployment failed, and the message has the last failure of each.",
    "input": "The row could not be made into a request, and nothing was sent. Mend the row, the template or the file.",
    "function": "The stage's function raised, or gave what its columns cannot hold. Mend the function or the row.",
    "malformed_input": "The line of the source cannot be read. Mend the source, then resume.",
    "worker_died": "The row ended every worker that had it: look at it, and at what reads it. A resume tries it again.",
    "stopped": "The run was stopped before the answer came. A resume sends these again.",
    "internal": "An unforeseen error, with a traceback in run.log. Please report it.",
}


def remedy(kind: str) -> str:
    """What to do about errors of a kind. One that is not known here gets a general answer."""
    return _REMEDIES.get(kind, "The message says what the matter is. Mend it, then try these again.")
