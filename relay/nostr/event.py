"""The signed event: from parsed JSON to a checked value, its canonical form, id and signature (NIP-01).

Parsed JSON goes in, an `Event` comes out whose seven fields have the right shapes; `verify` then proves that the id is
the hash of the fields and the signature that of the author. Every event from outside needs both steps. An `Event` is
never changed after it was made; ids, keys and signatures in it are lowercase hex.

What is stored and sent is `Event.json`, our own writing of the verified fields and never the bytes that came in: an
object with a key twice would verify here by its last value and show a client that takes the first one something else.
"""

from __future__ import annotations

from binascii import unhexlify
from hashlib import sha256
from typing import Final

import orjson

from relay.errors import ProtocolError
from relay.nostr.ids import parse_event_id, parse_hex64, parse_pubkey, parse_uuid
from relay.nostr.keys import SecretKey, verify_schnorr
from relay.nostr.kinds import KIND_MAX

UINT64_MAX: Final = 2**64 - 1


class InvalidEvent(ProtocolError):
    """The object is not an event, or not one that its author signed. `reason` is for the client's eyes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Event:
    """One event. Two are equal if all seven fields are."""

    __slots__ = ("_json", "_tag_index", "content", "created_at", "id", "kind", "pubkey", "sig", "tags")

    def __init__(
        self,
        id: str,  # noqa: A002 (the wire's own names, so that parsed JSON can be passed on as it is)
        pubkey: str,
        created_at: int,
        kind: int,
        tags: list[list[str]],
        content: str,
        sig: str,
    ) -> None:
        self.id = id
        self.pubkey = pubkey
        self.created_at = created_at
        self.kind = kind
        self.tags = tags
        self.content = content
        self.sig = sig
        self._json: bytes | None = None
        self._tag_index: dict[str, set[str]] | None = None

    @property
    def json(self) -> bytes:
        """The seven fields as compact JSON in the order of NIP-01, written once and kept.

        Raises orjson's TypeError if a string is no valid Unicode, which `verify` rules out.
        """
        if self._json is None:
            self._json = orjson.dumps(
                {
                    "id": self.id,
                    "pubkey": self.pubkey,
                    "created_at": self.created_at,
                    "kind": self.kind,
                    "tags": self.tags,
                    "content": self.content,
                    "sig": self.sig,
                }
            )
        return self._json

    @property
    def tag_index(self) -> dict[str, set[str]]:
        """The second elements by the name of the tag; a tag without one leaves at least its name. Made once and kept:
        one event is compared with the filters of many subscriptions."""
        index = self._tag_index
        if index is None:
            index = self._tag_index = {}
            for tag in self.tags:
                index.setdefault(tag[0], set()).update(tag[1:2])
        return index

    def tag_values(self, name: str) -> list[str]:
        """The second elements of all tags of that name, in order; tags without one are skipped."""
        return [tag[1] for tag in self.tags if tag[0] == name and len(tag) > 1]

    def first_tag(self, name: str) -> str | None:
        """The first of `tag_values`."""
        for tag in self.tags:
            if tag[0] == name and len(tag) > 1:
                return tag[1]
        return None

    def hex64_values(self, name: str) -> list[str]:
        """Those of `tag_values` that are 64 hex digits, lowered."""
        return [value for text in self.tag_values(name) if (value := parse_hex64(text)) is not None]

    def p_tags(self) -> list[str]:
        """Whom the event mentions: the 64-digit values of its `p` tags, lowered, each once, in order."""
        return list(dict.fromkeys(self.hex64_values("p")))

    def channel_id(self) -> str | None:
        """The channel named by the first `h` tag that is a UUID, in canonical form."""
        for tag in self.tags:
            if tag[0] == "h" and len(tag) > 1 and (channel := parse_uuid(tag[1])) is not None:
                return channel
        return None

    def __eq__(self, other: object) -> bool:
        return self.json == other.json if isinstance(other, Event) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Event(id={self.id}, kind={self.kind}, pubkey={self.pubkey}, created_at={self.created_at})"


# --- parse ------------------------------------------------------------------------------------------------------------


def parse_event(obj: object) -> Event:
    """An event from parsed JSON. Neither id nor signature is verified.

    Ids and keys may come in bech32 (NIP-19) too; unknown keys are ignored.

    Raises:
        InvalidEvent: a field is missing or has the wrong shape.
    """
    if type(obj) is not dict:
        raise InvalidEvent("expected an object")
    try:
        event = Event(
            obj["id"], obj["pubkey"], obj["created_at"], obj["kind"], obj["tags"], obj["content"], obj["sig"]
        )  # fmt: skip
    except KeyError as error:
        raise InvalidEvent(f"missing field `{error.args[0]}`") from None
    event.id = _parse_id(event.id)
    event.pubkey = _parse_author(event.pubkey)
    event.sig = _parse_signature(event.sig)
    # type() and not isinstance(): True is an int for isinstance().
    if type(event.created_at) is not int or not 0 <= event.created_at <= UINT64_MAX:
        raise InvalidEvent("created_at must be an unsigned 64-bit integer")
    if type(event.kind) is not int or not 0 <= event.kind <= KIND_MAX:
        raise InvalidEvent(f"kind must be an integer between 0 and {KIND_MAX}")
    _check_tags(event.tags)
    if type(event.content) is not str:
        raise InvalidEvent("content must be a string")
    return event


def _parse_id(value: object) -> str:
    event_id = parse_event_id(value) if type(value) is str else None
    if event_id is None:
        raise InvalidEvent("Invalid event ID")
    return event_id


def _parse_author(value: object) -> str:
    pubkey = parse_pubkey(value) if type(value) is str else None
    if pubkey is None:
        raise InvalidEvent("Invalid public key")
    return pubkey


def _parse_signature(value: object) -> str:
    if type(value) is str and len(value) == 128:
        try:
            unhexlify(value)
        except ValueError:
            pass
        else:
            return value.lower()
    raise InvalidEvent("malformed signature")


def _check_tags(tags: object) -> None:
    if type(tags) is not list:
        raise InvalidEvent("tags must be an array")
    for tag in tags:
        if type(tag) is not list:
            raise InvalidEvent("a tag must be an array of strings")
        if not tag:
            raise InvalidEvent("Empty tag")
        for value in tag:
            if type(value) is not str:
                raise InvalidEvent("a tag must be an array of strings")


def load_event(json: bytes) -> Event:
    """An event that this relay wrote itself (`Event.json`), back from the store. Shapes are trusted, not checked."""
    fields = orjson.loads(json)
    event = Event(**fields)
    event._json = json
    return event


# --- id and signature -------------------------------------------------------------------------------------------------


def canonical(event: Event) -> bytes:
    """The bytes whose SHA-256 is the id: `[0,pubkey,created_at,kind,tags,content]` without white space, in UTF-8.

    Raises:
        InvalidEvent: a string holds half of a surrogate pair, which has no UTF-8.
    """
    return _canonical(event.pubkey, event.created_at, event.kind, event.tags, event.content)


def _canonical(pubkey: str, created_at: int, kind: int, tags: list[list[str]], content: str) -> bytes:
    try:
        return orjson.dumps([0, pubkey, created_at, kind, tags, content])
    except TypeError:
        raise InvalidEvent("strings must be valid Unicode") from None


def compute_id(event: Event) -> str:
    """The id that the fields have, whatever `event.id` says. Raises InvalidEvent as `canonical` does."""
    return sha256(canonical(event)).hexdigest()


def verify(event: Event) -> None:
    """Prove id and signature, id first. 27 µs for 300 bytes, nearly all of it libsecp256k1.

    Raises:
        InvalidEvent: with the text that the client gets behind `invalid: `.
    """
    verify_signature(event, verify_id(event))


def verify_id(event: Event) -> bytes:
    """Prove the id alone, and return it as the 32 bytes that are signed. Raises as `verify`."""
    digest = sha256(canonical(event)).digest()
    computed = digest.hex()
    if computed != event.id:
        raise InvalidEvent(f"invalid event id: computed {computed}, got {event.id}")
    return digest


def verify_signature(event: Event, digest: bytes) -> None:
    """Prove the signature under what `verify_id` has returned. Raises as `verify`."""
    if not verify_schnorr(event.pubkey, digest, unhexlify(event.sig)):
        raise InvalidEvent("invalid schnorr signature")


def sign_event(secret: SecretKey, *, created_at: int, kind: int, tags: list[list[str]], content: str) -> Event:
    """A new event by the owner of `secret`. The same arguments give the same event, signature included.

    Raises:
        InvalidEvent: a string is no valid Unicode.
    """
    digest = sha256(_canonical(secret.public_hex, created_at, kind, tags, content)).digest()
    return Event(digest.hex(), secret.public_hex, created_at, kind, tags, content, secret.sign(digest))
