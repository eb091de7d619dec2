import asyncio

from brain_service.inference.sessions import Turn


def test_a_turn_just_released_to_a_waiter_is_not_free() -> None:
    async def scenario() -> None:
        turn, order = Turn(), []

        async def take(name: str) -> None:
            async with turn:
                order.append(name)

        assert turn.free
        await turn.acquire()
        assert not turn.free
        first = asyncio.create_task(take("first"))
        await asyncio.sleep(0)
        turn.release()
        # Nobody holds it now, and yet the next one has to stand behind the first.
        assert not turn.locked() and not turn.free
        await take("second")
        await first
        assert order == ["first", "second"] and turn.free

    asyncio.run(scenario())


def test_who_gives_up_waiting_leaves_the_turn_to_others() -> None:
    async def scenario() -> None:
        turn = Turn()
        await turn.acquire()
        waiter = asyncio.create_task(turn.acquire())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        turn.release()
        assert turn.free

    asyncio.run(scenario())
