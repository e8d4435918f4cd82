"""A batch and a stream with LMClient: ``python batch_and_stream.py [API_BASE MODEL]``.

Without arguments the embedded simulator answers. For a provider, ``LMClient("openai/gpt-4.1-mini")`` is enough: its key
comes from the environment.
"""

from __future__ import annotations

import sys

from pydantic import BaseModel

from infermesh import LMClient
from infermesh.simulator import Simulator

RIVERS = ["Amazon", "Danube", "Mekong", "Niger", "Rhine", "Yukon"]


class River(BaseModel):
    """The shape of an answer."""

    name: str
    countries: list[str]


def main(api_base: str, model: str) -> None:
    """Ask about every river, twice."""
    with LMClient(f"hosted_vllm/{model}", api_base=api_base, max_parallel_requests=4, max_retries=2) as client:
        prompts = [f"Which countries does the river {name} flow through?" for name in RIVERS]

        # Results come in the order of the inputs. What fails, as a message without a role, costs itself alone.
        batch = client.generate_batch([*prompts, [{"content": "Who asks?"}]], response_format=River)
        for result in batch.results:
            print(result.output_parsed if result else "failed")
        for index, failure in batch.failures.items():
            print(f"input {index}: {type(failure).__name__}: {failure}")

        # A stream gives each result as soon as it is there, with the number of its input.
        for index, answer, error in client.generate_stream(prompts):
            print(f"{RIVERS[index]}: {answer.output_text if answer else error}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(*sys.argv[1:])
    else:
        with Simulator() as simulator:
            main(simulator.url, "any")
