"""`/api/users`: profiles by key, many at once, the search for people, and who may add oneself to channels.

A key is known from its first sign-in through either door, its first token or its first profile on. Names and handles
come from kind 0 events; nothing here writes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from quart import Blueprint, Response

from relay.access.scopes import USERS_READ, USERS_WRITE
from relay.audit.entry import Action
from relay.http.auth import authenticate, services
from relay.http.hex_values import hex_bytes
from relay.http.refusals import ApiError, json_response
from relay.http.undecided import transact
from relay.http.values import Query, json_object, string, strings
from relay.ingest.effects import Effect
from relay.ingest.types import STORED, Outcome
from relay.nostr.ids import parse_hex64
from relay.store import user_lookups, users
from relay.store.user_lookups import User

BATCH_MAX: Final = 200
_TEXT_BYTES_MAX: Final = 200
_FOUND: Final = 8
_FOUND_MAX: Final = 50

routes = Blueprint("users", __name__)


@routes.get("/api/users/me/profile")
async def own_profile() -> Response:
    caller = await authenticate(USERS_READ)
    return await _profile(caller.pubkey)


@routes.get("/api/users/<pubkey>/profile")
async def profile(pubkey: str) -> Response:
    await authenticate(USERS_READ)
    return await _profile(_key(pubkey))


@routes.post("/api/users/batch")
async def profiles() -> Response:
    """`missing`: first the keys that nobody has, in order, then what is no key, as it was sent."""
    texts = strings(await json_object(), "pubkeys")
    await authenticate(USERS_READ)
    if len(texts) > BATCH_MAX:
        raise ApiError(400, f"max {BATCH_MAX} pubkeys per request")
    keys = {text: parse_hex64(text) for text in texts}
    wanted = sorted({key for key in keys.values() if key is not None})
    found = {user.pubkey: _names(user) for user in await user_lookups.many(services().pool, wanted)} if wanted else {}
    missing = [key for key in wanted if key not in found] + [text for text in texts if keys[text] is None]
    return json_response({"profiles": found, "missing": missing})


@routes.get("/api/users/search")
async def search() -> Response:
    """People by a part of their name, handle or key; the best match first."""
    query = Query(("q", "limit"))
    text, size = query.required("q").strip(), max(1, query.limit(_FOUND, _FOUND_MAX))
    await authenticate(USERS_READ)
    if len(text.encode()) > _TEXT_BYTES_MAX:
        # The text of the original, which counts bytes and says characters.
        raise ApiError(400, "search query too long (max 200 characters)")
    found = await user_lookups.search(services().pool, text, size) if text else []
    return json_response({"users": [{"pubkey": user.pubkey, **_names(user)} for user in found]})


@dataclass
class SetPolicy:
    """The transaction of a new policy: with its entry in the audit log or not at all. May run more than once."""

    pubkey: str
    policy: str
    owner: str | None = None

    async def __call__(self, effect: Effect) -> Outcome:
        self.owner = await users.set_policy(effect.con, self.pubkey, self.policy)
        effect.audit(Action.SETTINGS_CHANGED, None, None, metadata={"channel_add_policy": self.policy})
        return STORED


@routes.put("/api/users/me/channel-add-policy")
async def set_channel_add_policy() -> Response:
    """Who may add the caller to a channel."""
    policy = string(await json_object(), "channel_add_policy")
    caller = await authenticate(USERS_WRITE)
    if policy not in users.ADD_POLICIES:
        raise ApiError(400, "channel_add_policy must be 'anyone', 'owner_only', or 'nobody'")
    change = SetPolicy(caller.pubkey, policy)
    await transact(change, caller.pubkey)
    return json_response({"channel_add_policy": policy, "agent_owner_pubkey": change.owner})


async def _profile(pubkey: str) -> Response:
    user = await user_lookups.get(services().pool, pubkey)
    if user is None:
        raise ApiError(404, "user not found")
    body = {"pubkey": user.pubkey, **_names(user), "about": user.about, "agent_owner_pubkey": user.owner}
    return json_response(body)


def _names(user: User) -> dict[str, Any]:
    return {"display_name": user.display_name, "avatar_url": user.avatar_url, "nip05_handle": user.nip05_handle}


def _key(text: str) -> str:
    """32 bytes in hex of either case; whether they are a point on the curve is not asked."""
    key = parse_hex64(text)
    if key is not None:
        return key
    raise ApiError(400, "invalid pubkey hex" if hex_bytes(text) is None else "pubkey must be 32 bytes")
