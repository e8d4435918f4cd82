"""The client, many items at once: order, errors, callbacks, streams, bounds, and ends before the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import BaseModel

from infermesh import BadRequestError, BatchResult, ConfigError, ContentFilterError, InputError, LMClient
from infermesh.client.operations import AudioInput
from infermesh.simulator import Faults, Simulator
from tests.support import totals, wait_until, wav

Start = Callable[..., Simulator]
MODEL = "hosted_vllm/any"
WINDOW = 4


class Note(BaseModel):
    text: str


@pytest.fixture
def client(simulator: Simulator) -> Any:
    with LMClient(MODEL, api_base=simulator.url, max_parallel_requests=WINDOW, max_retries=0) as opened:
        yield opened


@pytest.fixture
def picky(start_simulator: Start) -> Any:
    """Refuses every prompt and text with "forbidden" in it."""
    service = start_simulator(filter_marker="forbidden", bad_texts="forbidden")
    with LMClient(MODEL, api_base=service.url, max_parallel_requests=WINDOW) as opened:
        yield opened


def prompts(count: int) -> list[str]:
    return [f"Parcel number {n} came late." for n in range(count)]


def texts(batch: BatchResult[Any]) -> list[str | None]:
    return [None if result is None else result.output_text for result in batch]


async def later(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.mark.parametrize("window", [WINDOW, None])
@pytest.mark.parametrize("shape", [list, tuple, iter, later])
def test_results_stand_in_the_order_of_the_inputs(simulator: Simulator, window: int | None, shape: Any) -> None:
    with LMClient(MODEL, api_base=simulator.url, max_parallel_requests=window) as client:
        batch = client.generate_batch(shape(prompts(40)))
    assert texts(batch) == prompts(40)
    assert batch.errors == [None] * 40
    assert len(batch) == 40
    assert not batch.failures
    assert totals(simulator)["received"] == 40
    if window is not None:
        assert totals(simulator)["max_in_flight"] <= window


def test_an_empty_batch_is_one(client: LMClient) -> None:
    assert len(client.generate_batch([])) == 0
    assert len(client.generate_batch(iter([]), on_progress=print)) == 0
    assert len(client.embed_batch([])) == 0
    assert list(client.generate_stream([])) == []


@pytest.mark.parametrize("watched", [False, True])
def test_a_failing_item_is_a_gap_and_an_error_of_its_class(picky: LMClient, watched: bool) -> None:
    inputs: list[Any] = ["One.", "forbidden", None, 5, {"prompt": "Two."}, "Three."]
    batch = picky.generate_batch(inputs, on_progress=(lambda done, total: None) if watched else None)
    assert texts(batch) == ["One.", None, None, None, None, "Three."]
    kinds = [type(error) for error in batch.errors]
    assert kinds == [type(None), ContentFilterError, InputError, InputError, InputError, type(None)]
    assert batch.failures.keys() == {1, 2, 3, 4}


@pytest.mark.parametrize("watched", [False, True])
def test_the_first_failure_ends_the_batch_where_asked(picky: LMClient, watched: bool) -> None:
    inputs = ["forbidden", *prompts(500)]
    watch = (lambda done, total: None) if watched else None
    with pytest.raises(ContentFilterError) as caught:
        picky.generate_batch(inputs, return_exceptions=False, on_progress=watch)
    assert isinstance(caught.value.batch.errors[0], ContentFilterError)  # type: ignore[attr-defined]
    assert picky.generate("Still there.").output_text == "Still there."


@pytest.mark.parametrize("given", ["a prompt", b"bytes", {"role": "user", "content": "x"}, None, 5])
def test_one_input_is_no_batch(client: LMClient, given: Any) -> None:
    with pytest.raises(TypeError, match="iterable"):
        client.generate_batch(given)
    with pytest.raises(TypeError, match="iterable"):
        client.generate_stream(given)


def test_watchers_hear_of_each_item_once_in_the_callers_thread(picky: LMClient) -> None:
    heard: list[Any] = []
    progress: list[Any] = []
    threads: set[int] = set()

    def on_result(index: int, result: Any, error: Any) -> None:
        threads.add(threading.get_ident())
        heard.append((index, result and result.output_text, type(error)))

    inputs = ["One.", "forbidden", "Three."]
    picky.generate_batch(inputs, on_result=on_result, on_progress=lambda *seen: progress.append(seen))
    assert sorted(heard) == [(0, "One.", type(None)), (1, None, ContentFilterError), (2, "Three.", type(None))]
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert threads == {threading.get_ident()}
    progress.clear()
    picky.generate_batch(iter(inputs), on_progress=lambda *seen: progress.append(seen))
    assert progress == [(1, None), (2, None), (3, None)]


def test_a_watcher_that_raises_ends_the_batch_and_loses_nothing(client: LMClient, simulator: Simulator) -> None:
    def on_result(index: int, result: Any, error: Any) -> None:
        if index == 10:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full") as caught:
        client.generate_batch(prompts(1000), on_result=on_result)
    batch: BatchResult[Any] = caught.value.batch  # type: ignore[attr-defined]
    assert len(batch) == 1000
    assert str(batch[10]) == prompts(11)[10]
    assert totals(simulator)["received"] < 100
    assert totals(simulator)["in_flight"] == 0


@pytest.mark.parametrize("window", [WINDOW, None])
def test_an_iterator_that_raises_ends_the_batch(simulator: Simulator, window: int | None) -> None:
    def broken() -> Iterator[str]:
        yield from prompts(5)
        raise LookupError("no such row")

    with LMClient(MODEL, api_base=simulator.url, max_parallel_requests=window) as client:
        with pytest.raises(LookupError, match="no such row"):
            client.generate_batch(broken())
        with pytest.raises(LookupError, match="no such row"):
            list(client.generate_stream(broken()))

        async def main() -> None:
            with pytest.raises(LookupError, match="no such row"):
                await client.agenerate_batch(broken())

        asyncio.run(main())


def test_a_stream_pulls_no_more_than_it_may_have_on_its_way(client: LMClient, simulator: Simulator) -> None:
    pulled = 0

    def endless() -> Iterator[str]:
        nonlocal pulled
        while True:
            pulled += 1
            yield f"Parcel {pulled}."

    for taken, (index, result, error) in enumerate(client.generate_stream(endless()), 1):
        assert error is None
        assert result is not None
        assert result.output_text == f"Parcel {index + 1}."
        assert pulled - taken < 2 * WINDOW
        if taken == 200:
            break
    wait_until(lambda: totals(simulator)["in_flight"] == 0, "requests to end")
    assert totals(simulator)["max_in_flight"] <= WINDOW
    assert totals(simulator)["received"] <= pulled


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_stream_of_texts_is_bounded_and_gives_each_once(client: LMClient, simulator: Simulator, size: int) -> None:
    pulled, bound = 0, 2 * WINDOW * size

    def many() -> Iterator[str]:
        nonlocal pulled
        for pulled in range(1, 301):
            yield f"Parcel {pulled}."

    seen = set()
    for taken, (index, result, error) in enumerate(client.embed_stream(many(), micro_batch_size=size), 1):
        assert error is None
        assert result is not None
        seen.add(index)
        assert pulled - taken < bound
    assert seen == set(range(300))
    assert totals(simulator, "embeddings")["received"] == 300 // size
    assert totals(simulator, "embeddings")["max_in_flight"] <= WINDOW


def test_a_stream_of_texts_or_clips_tells_what_fails(picky: LMClient) -> None:
    found = list(picky.embed_stream(["One.", "forbidden", None, "Four."], micro_batch_size=4))  # type: ignore[list-item]
    kinds = {index: type(error) for index, _, error in found if error is not None}
    assert (len(found), kinds) == (4, {1: BadRequestError, 2: InputError})
    clips: list[AudioInput] = [wav("One."), "nowhere.wav", wav("Three.")]
    said = {
        index: (result and result.text, type(error))
        for index, result, error in picky.transcribe_stream(iter(clips), language="en")
    }
    assert said == {0: ("One.", type(None)), 1: (None, InputError), 2: ("Three.", type(None))}


@pytest.mark.parametrize("method", ["embed_stream", "aembed_stream", "transcribe_stream", "atranscribe_stream"])
def test_a_stream_checks_its_inputs_at_once(client: LMClient, method: str) -> None:
    ask = getattr(client, method)
    with pytest.raises(TypeError, match="expected a list"):
        ask("one text")
    with pytest.raises(ConfigError, match="timeout"):
        ask(["one"], timeout=0)
    if "embed" in method:
        with pytest.raises(ConfigError, match="micro_batch_size"):
            ask(["one"], micro_batch_size=0)


def test_leaving_a_stream_of_clips_ends_its_requests(start_simulator: Start) -> None:
    service = start_simulator(latency_s=0.05)
    with LMClient(MODEL, api_base=service.url, max_parallel_requests=WINDOW) as client:
        stream = client.transcribe_stream(wav(f"Number {n}.") for n in range(1000))
        assert next(stream).error is None
        stream.close()  # type: ignore[attr-defined]
        assert client.embed("In between.").embedding
        wait_until(lambda: totals(service, "transcriptions")["in_flight"] == 0, "requests to end")
        assert totals(service, "transcriptions")["received"] <= 3 * WINDOW


def test_a_stream_that_nobody_reads_stands_still(client: LMClient, simulator: Simulator) -> None:
    stream = client.generate_stream(f"Parcel {n}." for n in range(10_000))
    next(stream)
    assert client.generate("In between.").output_text == "In between."
    stream.close()  # type: ignore[attr-defined]
    assert totals(simulator)["in_flight"] == 0
    assert totals(simulator)["received"] <= 2 * WINDOW + 1


def test_a_stream_checks_its_options_at_once(client: LMClient) -> None:
    with pytest.raises(ConfigError, match="response_format"):
        client.generate_stream(prompts(2), response_format=5)  # type: ignore[arg-type]
    items = list(client.generate_stream(prompts(2), response_format=Note))
    assert {item.index for item in items} == {0, 1}
    assert all(isinstance(item.result and item.result.output_parsed, Note) for item in items)


@pytest.mark.parametrize("watched", [False, True])
def test_texts_travel_together_and_a_bad_one_costs_only_itself(picky: LMClient, watched: bool) -> None:
    inputs: list[Any] = [f"text {n}" for n in range(100)]
    inputs[41], inputs[77] = "forbidden", None
    batch = picky.embed_batch(inputs, on_progress=(lambda done, total: None) if watched else None)
    assert batch.failures.keys() == {41, 77}
    assert isinstance(batch.errors[41], BadRequestError)
    assert isinstance(batch.errors[77], InputError)
    alone = picky.embed("text 99")
    assert batch[99] is not None
    assert batch[99].embedding == alone.embedding


@pytest.mark.parametrize(("size", "requests"), [(32, 4), (100, 1), (1, 100), (1000, 1)])
def test_the_micro_batch_size_is_the_texts_of_a_request(simulator: Simulator, size: int, requests: int) -> None:
    with LMClient(MODEL, api_base=simulator.url) as client:
        batch = client.embed_batch((f"text {n}" for n in range(100)), micro_batch_size=size)
    assert len(batch) == 100
    assert not batch.failures
    assert totals(simulator, "embeddings")["received"] == requests


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_micro_batch_has_a_text_at_least(client: LMClient, size: Any) -> None:
    with pytest.raises(ConfigError, match="micro_batch_size"):
        client.embed_batch(["text"], micro_batch_size=size)


def test_clips(client: LMClient) -> None:
    batch = client.transcribe_batch([wav("One."), "nowhere.wav", wav("Three.")], language="en")
    assert [result and result.text for result in batch] == ["One.", None, "Three."]
    assert isinstance(batch.errors[1], InputError)


async def test_async_batches_take_and_tell_the_same(picky: LMClient) -> None:
    heard: list[int] = []

    async def on_result(index: int, result: Any, error: Any) -> None:
        await asyncio.sleep(0)
        heard.append(index)

    inputs = ["One.", "forbidden", "Three."]
    for given in (inputs, iter(inputs), later(inputs)):
        batch = await picky.agenerate_batch(given, on_result=on_result)
        assert texts(batch) == ["One.", None, "Three."]
    assert sorted(heard) == sorted([0, 1, 2] * 3)
    assert texts(await picky.agenerate_batch(inputs)) == ["One.", None, "Three."]
    assert len(await picky.aembed_batch(inputs)) == 3
    assert len(await picky.atranscribe_batch([wav("One.")])) == 1
    assert (await picky.aembed("One.")).embedding
    assert (await picky.atranscribe(wav("One."))).text == "One."
    with pytest.raises(ContentFilterError):
        await picky.agenerate_batch(inputs, return_exceptions=False, on_result=on_result)


def test_an_async_watcher_needs_the_async_method(client: LMClient) -> None:
    async def on_result(index: int, result: Any, error: Any) -> None:
        await asyncio.sleep(0)

    with pytest.raises(TypeError, match="asynchronous"):
        client.generate_batch(["One."], on_result=on_result)


async def test_an_async_stream_is_bounded_and_ends_early(client: LMClient, simulator: Simulator) -> None:
    pulled = taken = 0

    async def endless() -> AsyncIterator[str]:
        nonlocal pulled
        while True:
            await asyncio.sleep(0)
            pulled += 1
            yield f"Parcel {pulled}."

    async with aclosing(client.agenerate_stream(endless())) as stream:  # type: ignore[type-var]
        async for index, result, _ in stream:
            taken += 1
            assert result is not None
            assert result.output_text == f"Parcel {index + 1}."
            assert pulled - taken < 2 * WINDOW
            if taken == 100:
                break
    assert (await asyncio.to_thread(totals, simulator))["in_flight"] == 0


async def test_async_streams_of_texts_and_clips(picky: LMClient) -> None:
    inputs = ["One.", "forbidden", "Three."]
    errors = {index: type(error) async for index, _, error in picky.aembed_stream(later(inputs), micro_batch_size=2)}
    assert errors == {0: type(None), 1: BadRequestError, 2: type(None)}
    clips = picky.atranscribe_stream(later([wav("One."), b"", wav("Three.")]))
    said = {index: None if result is None else result.text async for index, result, _ in clips}
    assert said == {0: "One.", 1: None, 2: "Three."}


async def test_a_slow_async_source_does_not_hold_back_what_has_settled(client: LMClient) -> None:
    more = asyncio.Event()

    async def slow() -> AsyncIterator[str]:
        yield "One."
        await more.wait()
        yield "Two."

    texts = []
    async for item in client.agenerate_stream(slow()):
        assert item.result is not None
        texts.append(item.result.output_text)
        more.set()
    assert texts == ["One.", "Two."]


async def test_a_cancelled_batch_ends_its_requests(start_simulator: Start) -> None:
    stuck = start_simulator(faults=Faults(hang=1.0))
    async with LMClient(MODEL, api_base=stuck.url, max_parallel_requests=WINDOW) as client:
        for watch in (None, lambda done, total: None):
            batch = asyncio.create_task(client.agenerate_batch(prompts(50), on_progress=watch))
            await asyncio.to_thread(wait_until, lambda: totals(stuck)["in_flight"] == WINDOW, "requests to hang")
            batch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await batch
            await asyncio.to_thread(wait_until, lambda: totals(stuck)["in_flight"] == 0, "requests to end")
        assert (await asyncio.to_thread(totals, stuck))["received"] == 2 * WINDOW
