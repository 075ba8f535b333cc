"""EVENT: order of the OKs, what may not overtake, and what is told while the relay stops."""

from __future__ import annotations

import pytest
import trio

from relay.ingest.batch import Submission
from relay.ingest.pipeline import Ingest
from tests.support.core import ALICE, BOB
from tests.support.relay import Client, RelayUnderTest, fields, message, serving


async def test_oks_come_in_the_order_of_the_events(relay: RelayUnderTest) -> None:
    """Refused ones are decided at once and stored ones after a commit; the answers keep the order all the same."""
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    events = []
    for number in range(200):
        if number % 3 == 0:
            events.append(BOB.sign(9, f"{number}", [["h", channel]]))  # not the signer
        elif number % 7 == 0:
            events.append(events[-1])  # a duplicate, in the same batch or in an earlier one
        else:
            events.append(message(ALICE, channel, f"{number}"))
    for event in events:
        await client.send("EVENT", fields(event))
    answers = [await client.expect("OK") for _ in events]
    assert [answer[1] for answer in answers] == [event.id for event in events]
    assert all(answer[2] == (event.pubkey == ALICE.pubkey) for answer, event in zip(answers, events, strict=True))
    assert "duplicate:" in {answer[3] for answer in answers}


async def test_no_more_than_the_limit_wait_for_their_commit(migrated_dsn: str) -> None:
    async with serving(migrated_dsn, max_pending_events=4) as relay:
        channel = await relay.channel(ALICE)
        client = await relay.connect(ALICE)
        async with relay.core.pool.transaction() as con:
            await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            for number in range(40):
                await client.send("EVENT", fields(message(ALICE, channel, f"{number}")))
            while relay.endpoint.statistics().pending_events < 4:
                await trio.sleep(0.005)
            # Whatever else the client sends stays in the socket.
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert relay.endpoint.statistics().pending_events == 4
        assert [(await client.expect("OK"))[2] for _ in range(40)] == [True] * 40


async def test_as_many_as_the_setting_says_wait_together_and_are_answered_in_order(relay: RelayUnderTest) -> None:
    """None of them is answered before its commit; a refused one in the middle waits for those before it."""
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    most = relay.core.settings.max_pending_events
    assert most == 64
    events = [message(ALICE, channel, f"{number}") for number in range(3 * most)]
    events[10] = BOB.sign(9, "not the signer", [["h", channel]])
    events[20] = events[19]
    async with relay.core.pool.transaction() as con:
        await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        for event in events:
            await client.send("EVENT", fields(event))
        with trio.fail_after(10):
            while relay.endpoint.statistics().pending_events < most:
                await trio.sleep(0.005)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert relay.endpoint.statistics().pending_events == most
    answers = [await client.expect("OK") for _ in events]
    assert [answer[1] for answer in answers] == [event.id for event in events]
    assert [number for number, answer in enumerate(answers) if not answer[2]] == [10]
    assert answers[20][3] == "duplicate:"


async def test_a_close_right_behind_its_request_leaves_nothing(relay: RelayUnderTest) -> None:
    """Also where the REQ has to wait: whoever closes has closed, whatever came in between."""
    channel = await relay.channel(ALICE)
    client, writer = await relay.connect(ALICE), await relay.connect(ALICE)
    for number in range(20):
        await client.send("REQ", f"{number}", {"#h": [channel]})
        await client.send("CLOSE", f"{number}")
    for number in range(20):
        assert await client.receive() == ["EOSE", f"{number}"]
        assert await client.receive() == ["CLOSED", f"{number}", ""]
    async with relay.core.pool.transaction() as con:
        await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        await client.send("REQ", "slow", {"#h": [channel]})
        await client.send("CLOSE", "slow")
        with trio.fail_after(10):
            while relay.core.hub.statistics().subscriptions < 1:
                await trio.sleep(0.005)
    assert await client.receive() == ["EOSE", "slow"]
    assert await client.receive() == ["CLOSED", "slow", ""]
    assert relay.core.hub.statistics().subscriptions == 0
    await writer.publish(message(ALICE, channel, "for nobody"))
    await client.send("CLOSE", "alive")
    assert await client.receive() == ["CLOSED", "alive", ""]


async def test_what_waits_in_line_does_not_overtake(relay: RelayUnderTest) -> None:
    """EVENTs, then a REQ, then a CLOSE, without waiting for any answer: the REQ finds all of them."""
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    events = [message(ALICE, channel, f"{number}") for number in range(50)]
    for event in events:
        await client.send("EVENT", fields(event))
    await client.send("REQ", "s", {"#h": [channel], "kinds": [9]})
    await client.send("CLOSE", "s")
    assert [(await client.expect("OK"))[1] for _ in events] == [event.id for event in events]
    stored = await client.until("EOSE", "s")
    assert {frame[2]["id"] for frame in stored} == {event.id for event in events}
    assert await client.receive() == ["CLOSED", "s", ""]


async def test_a_reaction_may_follow_its_target_at_once(relay: RelayUnderTest) -> None:
    """The target is not committed when the reaction is read."""
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    for number in range(20):
        target = message(ALICE, channel, f"{number}")
        reaction = ALICE.sign(7, "+", [["e", target.id]])
        await client.send("EVENT", fields(target))
        await client.send("EVENT", fields(reaction))
        assert await client.receive() == ["OK", target.id, True, ""]
        assert await client.receive() == ["OK", reaction.id, True, ""]


FOLLOWERS = {
    "reply": lambda channel, target: ALICE.sign(9, "re", [["h", channel], ["e", target.id, "", "reply"]]),
    "edit": lambda channel, target: ALICE.sign(40003, "better", [["h", channel], ["e", target.id]]),
    "vote": lambda channel, target: ALICE.sign(45002, "+", [["h", channel], ["e", target.id]]),
    "deletion": lambda channel, target: ALICE.sign(5, "", [["e", target.id]]),
}


@pytest.mark.parametrize("follower", FOLLOWERS)
async def test_what_refers_to_an_event_may_follow_it_at_once(relay: RelayUnderTest, follower: str) -> None:
    """Some of these are plain kinds, which wait for their commits together: not for that of their own target."""
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    sent = []
    for number in range(20):
        target = ALICE.sign(45001 if follower == "vote" else 9, f"{number}", [["h", channel]])
        sent += [target, FOLLOWERS[follower](channel, target)]
    for event in sent:
        await client.send("EVENT", fields(event))
    for event in sent:
        assert await client.receive() == ["OK", event.id, True, ""]


async def test_a_channel_may_be_used_at_once(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    channel = "00000005-0000-4000-8000-00000000abcd"
    create = ALICE.sign(9007, tags=[["h", channel], ["name", "new"]])
    first = message(ALICE, channel, "first")
    await client.send("EVENT", fields(create))
    await client.send("EVENT", fields(first))
    assert await client.receive() == ["OK", create.id, True, ""]
    assert await client.receive() == ["OK", first.id, True, ""]


async def test_ephemeral_events_are_answered_and_delivered(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE, BOB)
    alice, bob = await relay.connect(ALICE), await relay.connect(BOB)
    assert await bob.request("typing", {"#h": [channel], "kinds": [20002]}) == []
    typing = ALICE.sign(20002, tags=[["h", channel]])
    assert await alice.publish(typing) == ["OK", typing.id, True, ""]
    assert (await bob.expect("EVENT", "typing"))[2]["id"] == typing.id


async def test_the_author_sees_the_event_too(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    await client.request("s", {"#h": [channel]})
    event = message(ALICE, channel, "x")
    await client.send("EVENT", fields(event))
    assert {(await client.receive())[0] for _ in range(2)} == {"EVENT", "OK"}


async def test_while_the_relay_stops_everything_is_answered(relay: RelayUnderTest) -> None:
    client = await relay.connect(ALICE)
    relay.core.ingest.close()
    relay.endpoint.drain()
    event = ALICE.sign(1, "late")
    assert await client.publish(event) == ["OK", event.id, False, "error: shutting down"]
    await client.send("REQ", "s", {"kinds": [1]})
    assert await client.receive() == ["CLOSED", "s", "error: shutting down"]
    await client.send("CLOSE", "s")
    assert await client.receive() == ["CLOSED", "s", ""]


async def test_closed_queues_are_an_answer_too(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    relay.core.ingest.finish()
    for event in (message(ALICE, channel, "x"), ALICE.sign(20001, "online"), ALICE.sign(0, "{}")):
        assert await client.publish(event) == ["OK", event.id, False, "error: shutting down"]


async def test_an_event_for_a_commit_task_that_has_died_is_answered(relay: RelayUnderTest, monkeypatch) -> None:
    """Its session must not take the broken queue for a broken socket: the client would see no Close."""
    channel = await relay.channel(ALICE)
    client = await relay.connect(ALICE)
    queue, nobody = trio.open_memory_channel[Submission](1)
    nobody.close()
    event = message(ALICE, channel, "x")
    with monkeypatch.context() as patch:
        patch.setattr(relay.core.ingest, "_plain_in", queue)
        assert await client.publish(event) == ["OK", event.id, False, "error: shutting down"]
    assert (await client.publish(event))[2] is True


async def test_a_fault_of_ours_ends_only_its_connection(relay: RelayUnderTest, monkeypatch) -> None:
    admit = Ingest.admit

    async def faulty(self, event, caller, door):
        if event.content == "boom":
            raise ZeroDivisionError
        return await admit(self, event, caller, door)

    monkeypatch.setattr(Ingest, "admit", faulty)
    victim, other = await relay.connect(ALICE), await relay.connect(BOB)
    await victim.send("EVENT", fields(ALICE.sign(1, "boom")))
    assert await victim.closed() == (1011, "internal error")
    fine = BOB.sign(1, "fine")
    assert await other.publish(fine) == ["OK", fine.id, True, ""]


async def test_a_client_that_leaves_does_not_take_its_event_along(relay: RelayUnderTest) -> None:
    channel = await relay.channel(ALICE)
    client: Client = await relay.connect(ALICE)
    event = message(ALICE, channel, "bye")
    async with relay.core.pool.transaction() as con:
        await con.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        await client.send("EVENT", fields(event))
        while relay.endpoint.statistics().pending_events < 1:
            await trio.sleep(0.005)
        await client.stream.aclose()
        while relay.endpoint.connections:
            await trio.sleep(0.005)
    reader = await relay.connect(ALICE)
    with trio.fail_after(5):
        while not await reader.request("s", {"ids": [event.id]}):
            await trio.sleep(0.01)
