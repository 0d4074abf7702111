"""The thread behind a codec: in order, one at a time, and nothing kept of what is done."""

from __future__ import annotations

import asyncio
import threading
import weakref

import pytest

from mpcompress_server.loop_thread import LoopThread

PATIENCE_S = 30.0


@pytest.fixture
def thread():
    thread = LoopThread("worker")
    yield thread
    thread.close()


async def test_results_and_errors_come_back_in_order(thread):
    names = []

    def work(number: int) -> int:
        names.append((number, threading.current_thread().name))
        return 1 // number

    found = await asyncio.gather(*(thread.run(work, number) for number in (1, 0, 2)), return_exceptions=True)
    assert names == [(1, "worker"), (0, "worker"), (2, "worker")]
    assert found[::2] == [1, 0]
    assert isinstance(found[1], ZeroDivisionError)


async def test_what_is_given_up_before_its_turn_is_not_done(thread):
    gate, done = threading.Event(), []
    first = thread.run(gate.wait, PATIENCE_S)
    second = thread.run(done.append, 2)
    third = thread.run(done.append, 3)
    second.cancel()
    gate.set()
    assert await first
    await third
    assert done == [3]


async def test_what_is_given_up_while_it_is_done_harms_nothing(thread):
    gate, begun = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait(PATIENCE_S)

    future = thread.run(work)
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    future.cancel()
    gate.set()
    assert await thread.run(str, 7) == "7"
    assert future.cancelled()


async def test_nothing_is_kept_of_what_is_done(thread):
    class Tensor:
        pass

    tensor = Tensor()
    gone = weakref.ref(tensor)
    await thread.run(id, tensor)
    del tensor
    # The thread waits for more by now, or is about to.
    await thread.run(str, 1)
    assert gone() is None


def test_closing_waits_and_a_loop_that_has_ended_is_not_told():
    thread, gate, ended = LoopThread("worker"), threading.Event(), []

    def work() -> None:
        gate.wait(PATIENCE_S)
        ended.append(True)

    async def begin() -> None:
        thread.run(work)

    asyncio.run(begin())
    gate.set()
    thread.close()
    assert ended == [True]


def test_closing_what_never_began():
    LoopThread("worker").close()
