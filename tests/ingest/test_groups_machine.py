"""Groups against a model: any series of creations, changes, joins and removals, by anybody, in any state.

The model is the rules written down a second time, as plainly as possible and without a database: who may do what, and
who is in afterwards. After every step the store, the caches, the fan-out's audiences and the relay's own state events
must agree with it. `RELAY_MACHINE_EXAMPLES` (25) and `RELAY_MACHINE_STEPS` (30) make a longer campaign of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar
from uuid import uuid4

import orjson
import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from relay.fanout.hub import Batch
from relay.ingest.types import Outcome
from relay.store import members
from tests.support.core import ALICE, BOB, CAROL, Core, Person, running_core
from tests.support.groups import DAVE

EXAMPLES = int(os.environ.get("RELAY_MACHINE_EXAMPLES", "25"))
STEPS = int(os.environ.get("RELAY_MACHINE_STEPS", "30"))

PEOPLE = {"alice": ALICE, "bob": BOB, "carol": CAROL, "dave": DAVE}
NAMES = {person.pubkey: name for name, person in PEOPLE.items()}
ROLES = ["owner", "admin", "member", "guest", "bot"]
REFUSALS = ("invalid: ", "restricted: ")

# -- the model -------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """A channel as the rules have it. Every method says whether the actor may, and does it if so."""

    open: bool
    roles: dict[str, str]
    archived: bool = False
    deleted: bool = False
    topic: str | None = None
    name: str = "g"
    ttl: int | None = None
    messages: list[str] = field(default_factory=list)
    """Types of the system messages."""

    def sees(self, who: str) -> bool:
        return not self.deleted and (self.open or who in self.roles)

    def writable(self, who: str) -> bool:
        return self.sees(who) and not self.archived

    def elevated(self, who: str) -> bool:
        return self.roles.get(who) in ("owner", "admin")

    def lone_owner(self, who: str) -> bool:
        return self.roles.get(who) == "owner" and list(self.roles.values()).count("owner") == 1

    def put(self, actor: str, target: str, tag: str | None) -> bool:
        had = self.roles.get(target)
        role = tag or had or "member"
        changed = had != role
        allowed = self.writable(actor)
        if changed and (had is not None or role in ("owner", "admin")):
            allowed = allowed and self.elevated(actor)
        if changed and "owner" in (had, role):
            allowed = allowed and self.roles.get(actor) == "owner"
        if changed and self.lone_owner(target):
            allowed = False
        if allowed:
            self.roles[target] = role
            self.messages.append("member_joined")
        return allowed

    def remove(self, actor: str, target: str) -> bool:
        allowed = self.writable(actor) and target in self.roles and not self.lone_owner(target)
        if actor != target:
            allowed = allowed and self.elevated(actor)
            allowed = allowed and (self.roles.get(target) != "owner" or self.roles.get(actor) == "owner")
        if allowed:
            del self.roles[target]
            self.messages.append("member_left" if actor == target else "member_removed")
        return allowed

    def join(self, actor: str) -> bool:
        allowed = not self.deleted and not self.archived and self.open
        if allowed and actor not in self.roles:
            self.roles[actor] = "member"
            self.messages.append("member_joined")
        return allowed

    def leave(self, actor: str) -> bool:
        allowed = self.writable(actor) and actor in self.roles and not self.lone_owner(actor)
        if allowed:
            del self.roles[actor]
            self.messages.append("member_left")
        return allowed

    def edit(self, actor: str, changes: list[tuple[str, str]]) -> bool:
        fields = {name for name, _ in changes}
        archived = self.archived
        allowed = self.sees(actor) and actor in self.roles
        allowed = allowed and (self.elevated(actor) or fields <= {"topic"})
        allowed = allowed and (not archived or ("archived", "false") in changes)
        for name, value in changes:
            if name == "archived":
                allowed = allowed and archived != (value == "true")
                archived = value == "true"
        if allowed:
            for name, value in changes:
                self._set(name, value)
        return allowed

    def _set(self, name: str, value: str) -> None:
        match name:
            case "name":
                self.name = value
                return
            case "topic":
                self.topic = value or None
            case "visibility":
                self.open = value == "open"
            case "ttl":
                self.ttl = int(value) if value else None
            case "archived":
                self.archived = value == "true"
                self.messages.append("channel_archived" if self.archived else "channel_unarchived")
                return
        self.messages.append(f"{name}_changed")

    def delete(self, actor: str) -> bool:
        allowed = self.writable(actor) and self.roles.get(actor) == "owner"
        if allowed:
            self.deleted = True
            self.messages.append("channel_deleted")
        return allowed


# -- the relay, in a thread with a loop of its own -------------------------------------------------------------------


class Thread:
    """Runs a core and lets the machine, which is no coroutine, call into it."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self.core: Core

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        try:
            async with running_core(self._dsn) as self.core:
                self._ready.set()
                await self._stop.wait()
        finally:
            self._ready.set()

    def call(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return trio.from_thread.run(function, *args, trio_token=self._token)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        assert self._ready.wait(10)
        try:
            yield
        finally:
            trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
            self._thread.join(20)


# -- the machine -----------------------------------------------------------------------------------------------------

WHO = st.sampled_from(sorted(PEOPLE))
CHANGE = st.one_of(
    st.tuples(st.just("name"), st.sampled_from(["g", "h"])),
    st.tuples(st.just("topic"), st.sampled_from(["", "t", "u"])),
    st.tuples(st.just("visibility"), st.sampled_from(["open", "private"])),
    st.tuples(st.just("ttl"), st.sampled_from(["", "600", "1200"])),
    st.tuples(st.just("archived"), st.sampled_from(["true", "false"])),
)


class Groups(RuleBasedStateMachine):
    thread: ClassVar[Thread]
    nonce: ClassVar[Iterator[int]] = count()
    steps: ClassVar[list[bool]] = []
    groups = Bundle("groups")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, Group] = {}

    def step(self, allowed: bool, who: str, kind: int, channel: str, *tags: list[str]) -> None:
        """Submits what the model has decided about."""
        person = PEOPLE[who]
        # No two events of a run are the same one, or the second would be a duplicate.
        tags = (["h", channel], *tags, ["nonce", str(next(self.nonce))])
        outcome = self.thread.call(self.submit, person, person.sign(kind, "x", list(tags)))
        assert outcome.accepted == allowed, (outcome.message, allowed)
        assert outcome.message == "" if allowed else outcome.message.startswith(REFUSALS)
        self.steps.append(allowed)

    async def submit(self, person: Person, event: Any) -> Outcome:
        return await self.thread.core.submit(person, event)

    @rule(target=groups, who=WHO, is_open=st.booleans())
    def create(self, who: str, is_open: bool) -> str:
        channel = str(uuid4())
        visibility = "open" if is_open else "private"
        self.step(True, who, 9007, channel, ["name", "g"], ["visibility", visibility])
        self.model[channel] = Group(is_open, {who: "owner"}, messages=["channel_created"])
        self.thread.call(self.thread.core.hub.watch, [channel])
        return channel

    @rule(channel=groups, who=WHO, whom=WHO, role=st.none() | st.sampled_from(ROLES))
    def put(self, channel: str, who: str, whom: str, role: str | None) -> None:
        tags = [["p", PEOPLE[whom].pubkey], *([["role", role]] if role is not None else [])]
        self.step(self.model[channel].put(who, whom, role), who, 9000, channel, *tags)

    @rule(channel=groups, who=WHO, whom=WHO)
    def remove(self, channel: str, who: str, whom: str) -> None:
        allowed = self.model[channel].remove(who, whom)
        self.step(allowed, who, 9001, channel, ["p", PEOPLE[whom].pubkey])

    @rule(channel=groups, who=WHO)
    def join(self, channel: str, who: str) -> None:
        self.step(self.model[channel].join(who), who, 9021, channel)

    @rule(channel=groups, who=WHO)
    def leave(self, channel: str, who: str) -> None:
        self.step(self.model[channel].leave(who), who, 9022, channel)

    @rule(channel=groups, who=WHO, changes=st.lists(CHANGE, min_size=1, max_size=3))
    def edit(self, channel: str, who: str, changes: list[tuple[str, str]]) -> None:
        allowed = self.model[channel].edit(who, changes)
        self.step(allowed, who, 9002, channel, *([name, value] for name, value in changes))

    @rule(channel=groups, who=WHO)
    def say(self, channel: str, who: str) -> None:
        self.step(self.model[channel].writable(who), who, 9, channel)

    @rule(channel=groups, who=WHO)
    def delete(self, channel: str, who: str) -> None:
        self.step(self.model[channel].delete(who), who, 9008, channel)

    @invariant()
    def everything_agrees(self) -> None:
        for channel, group in self.model.items():
            self.thread.call(self._compare, channel, group)

    async def _compare(self, channel: str, group: Group) -> None:
        core = self.thread.core
        await _delivered(core)
        row = await core.pool.fetchrow("SELECT * FROM channels WHERE id = $1", channel)
        assert (row["visibility"] == "open", row["archived_at"] is not None, row["deleted_at"] is not None) == (
            group.open,
            group.archived,
            group.deleted,
        )
        assert (row["name"], row["topic"], row["ttl_seconds"]) == (group.name, group.topic, group.ttl)
        assert (row["ttl_deadline"] is not None) == (group.ttl is not None)
        stored = await members.active(core.pool, channel)
        assert {NAMES[member.pubkey]: member.role for member in stored} == group.roles
        for who, person in PEOPLE.items():
            assert core.hub.audiences.may_receive(channel, person.pubkey) == group.sees(who), who
            assert (channel in await core.directory.accessible(person.pubkey)) == group.sees(who), who
        await self._compare_state(core, channel, group)

    async def _compare_state(self, core: Core, channel: str, group: Group) -> None:
        rows = await core.pool.fetch(
            "SELECT kind, tags, content FROM events WHERE channel_id = $1 AND pubkey = $2 AND deleted_at IS NULL",
            channel,
            bytes.fromhex(core.key.public_hex),
        )
        state = {row["kind"]: orjson.loads(row["tags"]) for row in rows if row["kind"] < 40000}
        if group.deleted:
            assert state == {}
        else:
            assert {NAMES[tag[1]]: tag[3] for tag in state[39002][1:]} == group.roles
            elevated = {who: role for who, role in group.roles.items() if group.elevated(who)}
            assert {NAMES[tag[1]]: tag[2] for tag in state[39001][1:]} == elevated
            assert (["public"] in state[39000]) == group.open
            assert (["archived", "true"] in state[39000]) == group.archived
        # One of the same second with the same words is the same message: no more than the model's, and none missing.
        types = [orjson.loads(row["content"])["type"] for row in rows if row["kind"] == 40099]
        assert set(types) == set(group.messages)
        assert len(types) <= len(group.messages)


async def _delivered(core: Core) -> None:
    """Returns when the fan-out has gone past everything that was committed."""
    passed = trio.Event()
    async with core.hub.dispatcher() as dispatcher:
        await dispatcher.send(Batch([], passed))
    await passed.wait()


@pytest.mark.slow
def test_the_relay_is_its_model(migrated_dsn: str) -> None:
    Groups.thread = Thread(migrated_dsn)
    Groups.steps = []
    bounds = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    with Groups.thread.running():
        run_state_machine_as_test(Groups, settings=bounds)
    # A model that refuses everything would be in perfect agreement with a relay that does.
    accepted = sum(Groups.steps)
    assert accepted > EXAMPLES
    assert len(Groups.steps) - accepted > EXAMPLES
