"""Who may receive a channel: what is loaded, what changes meanwhile, and what waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, permutations
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.errors import StoreError
from relay.fanout.audiences import Audiences
from relay.fanout.items import AudienceLoaded, Batch, Item, Joined, Left, Live, Redefined
from relay.nostr.event import Event
from relay.store.members import Audience
from tests.fanout.world import OPEN, OTHER, private, running_hub
from tests.support.core import ALICE, BOB, CAROL, CHANNEL


@dataclass(frozen=True)
class State:
    """A channel as its transactions leave it."""

    open: bool = False
    deleted: bool = False
    members: frozenset[str] = frozenset()

    def allows(self, pubkey: str) -> bool:
        return not self.deleted and (self.open or pubkey in self.members)

    def loaded(self) -> Audience | None:
        """What the store says: no members where it does not matter who they are."""
        if self.deleted:
            return None
        return Audience("open", frozenset()) if self.open else Audience("private", self.members)

    def after(self, item: Item) -> State:
        if isinstance(item, Joined):
            return replace(self, members=self.members | {item.pubkey})
        if isinstance(item, Left):
            return replace(self, members=self.members - {item.pubkey})
        if isinstance(item, Redefined):
            if item.audience is None:
                return replace(self, deleted=True)
            return State(item.audience.visibility == "open", False, item.audience.members)
        return self


PEOPLE = [ALICE.pubkey, BOB.pubkey, CAROL.pubkey]
MEMBERS = private(ALICE, BOB)


# ---- all orders of a change of each sort, an event, and the load that the event waits for


def expected(items: Sequence[Item], loaded_at: int) -> dict[str, list[str]]:
    """What each key receives in the channel: EVENT or CLOSED, in order. Before `loaded_at` nothing is delivered."""
    received: dict[str, list[str]] = {pubkey: [] for pubkey in PEOPLE}
    subscribed, state, waiting = set(PEOPLE), State(members=MEMBERS.members), False

    def deliver() -> None:
        for pubkey in subscribed:
            if state.allows(pubkey):
                received[pubkey].append("EVENT")

    def end(ended: set[str]) -> None:
        for pubkey in ended & subscribed:
            received[pubkey].append("CLOSED")
        subscribed.difference_update(ended)

    for number in range(len(items) + 1):
        if number == loaded_at and waiting:
            deliver()
        if number == len(items):
            break
        item, state = items[number], state.after(items[number])
        if isinstance(item, Live):
            waiting = number < loaded_at
            if not waiting:
                deliver()
        elif isinstance(item, Left):
            end({item.pubkey})
        elif isinstance(item, Redefined):
            end({pubkey for pubkey in PEOPLE if not state.allows(pubkey)})
    return received


def states(items: Sequence[Item]) -> list[State]:
    """Before the first item, and after each."""
    return list(accumulate(items, State.after, initial=State(members=MEMBERS.members)))


async def run_order(items: Sequence[Item], loaded_at: int, seen: int) -> dict[str, list[str]]:
    """The same through a hub, whose load answers before item `loaded_at` with the state after `seen` items."""
    state = states(items)[seen]
    released = trio.Event()

    async def load(wanted: Sequence[str]) -> Mapping[str, Audience]:
        await released.wait()
        audience = state.loaded()
        return {} if audience is None else {CHANNEL: audience}

    async with running_hub({}, load) as world:
        clients = [world.client(person) for person in (ALICE, BOB, CAROL)]
        for client in clients:
            await world.subscribe(client, "x", CHANNEL, watch=False)
        world.nursery.start_soon(world.hub.watch, [CHANNEL])
        await trio.testing.wait_all_tasks_blocked()
        for number in range(len(items) + 1):
            if number == loaded_at:
                released.set()
                await trio.testing.wait_all_tasks_blocked()
            await world.pass_items(*items[number : number + 1])
        return {
            pubkey: [message[0] for message in client.receive_all()]
            for pubkey, client in zip(PEOPLE, clients, strict=True)
        }


@pytest.mark.parametrize(
    "audience", [private(ALICE), private(ALICE, BOB, CAROL), OPEN, None], ids=["alone", "three", "open", "unknown"]
)
async def test_every_order_of_changes_events_and_loads(audience: Audience | None) -> None:
    changes = [Joined(CHANNEL, CAROL.pubkey), Left(CHANNEL, BOB.pubkey), Redefined(CHANNEL, audience)]
    event = Live(ALICE.sign(9, "x"), CHANNEL, None)
    for items in permutations([event, *changes]):
        for loaded_at in range(len(items) + 1):
            wanted = expected(items, loaded_at)
            for seen in sorted({0, loaded_at // 2, loaded_at}):
                assert await run_order(items, loaded_at, seen) == wanted, (items, loaded_at, seen)
            # What is committed may be loaded before its item comes. Then the event may go by the later state.
            received = await run_order(items, loaded_at, len(items))
            since = states(items)[items.index(event) :]
            for pubkey in PEOPLE:
                assert received[pubkey].count("CLOSED") == wanted[pubkey].count("CLOSED")
                assert "EVENT" not in received[pubkey] or any(state.allows(pubkey) for state in since)


# ---- loading


def failing_once(found: Mapping[str, Audience]) -> Any:
    """A load that fails the first time and finds this the second."""
    answers: list[Any] = [StoreError("away"), found]

    async def load(wanted: Sequence[str]) -> Mapping[str, Audience]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return load


async def test_a_store_that_cannot_be_asked_is_an_error_and_then_forgotten(autojump_clock: Any) -> None:
    out, batches = trio.open_memory_channel[Batch](10)
    audiences = Audiences(failing_once({CHANNEL: OPEN}), capacity=10, in_use=lambda _: False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audiences.run_loader, out)
        with pytest.raises(StoreError):
            await audiences.watch([CHANNEL])

        async def apply() -> None:
            for item in (await batches.receive()).items:
                assert isinstance(item, AudienceLoaded)
                audiences.loaded(item)

        nursery.start_soon(apply)
        await audiences.watch([CHANNEL])
        assert audiences.may_receive(CHANNEL, CAROL.pubkey)
        nursery.cancel_scope.cancel()


async def test_channels_without_subscriptions_are_let_go() -> None:
    audiences = Audiences(lambda _: None, capacity=2, in_use=lambda channel: channel == "used")  # type: ignore[arg-type]
    for channel in ("used", "a", "b", "c"):
        audiences._want(channel)
        audiences.loaded(AudienceLoaded(channel, OPEN))
    assert audiences.is_known("used")
    assert len(audiences) <= 3
    assert not audiences.is_known("a")


async def test_a_load_that_failed_once_is_no_error_when_it_succeeds(autojump_clock: Any) -> None:
    """A channel that is in use is loaded again; whoever asks meanwhile gets the second answer."""
    out, batches = trio.open_memory_channel[Batch](10)
    audiences = Audiences(failing_once({CHANNEL: OPEN}), capacity=10, in_use=lambda _: True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audiences.run_loader, out)
        with pytest.raises(StoreError):
            await audiences.watch([CHANNEL])
        nursery.start_soon(audiences.watch, [CHANNEL])
        await trio.testing.wait_all_tasks_blocked()
        for item in (await batches.receive()).items:
            assert isinstance(item, AudienceLoaded)
            audiences.loaded(item)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_all_watched_channels_are_known_at_the_same_time() -> None:
    """One that is let go while another is waited for would silently be missing from the subscription."""
    out, batches = trio.open_memory_channel[Batch](10)

    async def load(wanted: Sequence[str]) -> Mapping[str, Audience]:
        await trio.lowlevel.checkpoint()
        return dict.fromkeys(wanted, OPEN)

    audiences = Audiences(load, capacity=2, in_use=lambda _: False)
    audiences._want(CHANNEL)
    audiences.loaded(AudienceLoaded(CHANNEL, OPEN))
    audiences._wanted.clear()

    async def apply() -> None:
        async for batch in batches:
            for item in batch.items:
                assert isinstance(item, AudienceLoaded)
                if item.channel_id == OTHER and audiences.is_known(CHANNEL):
                    del audiences._records[CHANNEL]  # as `_trim` would
                audiences.loaded(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(audiences.run_loader, out)
        nursery.start_soon(apply)
        with trio.fail_after(2):
            await audiences.watch([CHANNEL, OTHER])
        assert audiences.is_known(CHANNEL)
        assert audiences.is_known(OTHER)
        nursery.cancel_scope.cancel()


# ---- long histories, with loads that see more or less of them than the queue has brought


class AudienceMachine(RuleBasedStateMachine):
    """Transactions happen, their items come later and in order, a load sees what is committed when it looks."""

    @initialize(visibility=st.booleans(), members=st.sets(st.sampled_from(PEOPLE)))
    def start(self, visibility: bool, members: set[str]) -> None:
        self.audiences = Audiences(lambda _: None, capacity=10, in_use=lambda _: True)  # type: ignore[arg-type]
        self.history = [State(visibility, members=frozenset(members))]
        self.queue: list[Item] = []
        self.passed = 0  # how many of the history's steps have come out of the queue
        self.seen: int | None = None  # by the load that is known
        self.loading: State | None = None
        self.waiting: list[Live] = []
        self.wanted = False

    def commit(self, item: Item) -> None:
        self.history.append(self.history[-1].after(item))
        self.queue.append(item)

    def alive(self) -> bool:
        return not self.history[-1].deleted

    @precondition(alive)
    @rule(pubkey=st.sampled_from(PEOPLE), joins=st.booleans())
    def join_or_leave(self, pubkey: str, joins: bool) -> None:
        self.commit(Joined(CHANNEL, pubkey) if joins else Left(CHANNEL, pubkey))

    @precondition(alive)
    @rule(visibility=st.sampled_from(["open", "private"]))
    def redefine(self, visibility: str) -> None:
        self.commit(Redefined(CHANNEL, Audience(visibility, self.history[-1].members)))

    @precondition(alive)
    @rule()
    def delete(self) -> None:
        self.commit(Redefined(CHANNEL, None))

    @rule()
    def publish(self) -> None:
        if self.audiences.is_known(CHANNEL):
            return
        live = Live(EVENT, CHANNEL, len(self.waiting))
        assert self.audiences.hold(live)
        self.waiting.append(live)
        self.wanted = True

    @precondition(lambda self: self.wanted and self.loading is None and self.seen is None)
    @rule()
    def look(self) -> None:
        self.loading, self.looked = self.history[-1], len(self.history) - 1

    @precondition(lambda self: self.loading is not None)
    @rule()
    def answer(self) -> None:
        assert self.loading is not None
        self.queue.append(AudienceLoaded(CHANNEL, self.loading.loaded()))
        self.loading = None

    @precondition(lambda self: self.queue)
    @rule()
    def take(self) -> None:
        item = self.queue.pop(0)
        if isinstance(item, AudienceLoaded):
            assert list(self.audiences.loaded(item)) == self.waiting
            self.waiting, self.seen = [], self.looked
        else:
            assert isinstance(item, Joined | Left | Redefined)
            self.audiences.change(item)
            self.passed += 1

    @invariant()
    def nobody_is_let_in_who_never_was(self) -> None:
        known = self.seen is not None
        assert self.audiences.is_known(CHANNEL) == known
        since = self.history[self.passed : max(self.passed, self.seen or 0) + 1]
        for pubkey in PEOPLE:
            let_in = self.audiences.may_receive(CHANNEL, pubkey)
            assert not let_in or (known and any(state.allows(pubkey) for state in since))
            if known and len(since) == 1:
                assert let_in == since[0].allows(pubkey)


EVENT = Event("0" * 64, "1" * 64, 0, 9, [], "", "0" * 128)
AudienceMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestAudiencesAgainstTheirHistory = AudienceMachine.TestCase
