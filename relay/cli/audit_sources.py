"""Checkpoints that somebody else has kept, for `relay audit verify --against`: a file, a relay over HTTP, a relay that
keeps the events.

    notes.txt                       signed notes, one behind the other, as the relay's own file has them
    events.jsonl                    Nostr events of kind 48010, one a line, bare or as ["EVENT", ..., {...}]
    https://relay.example           its GET /audit/checkpoint, with a token that may read the audit log
    wss://other.example             any relay that took the events; asked for those of the relay's key

In: the name and a token. Out: the notes, given to `Anchors`. Nothing is believed here, and nothing needs to be: a note
is signed by the log's relay, whoever hands it over.

Bounds: 10 s a source over the network, 1 MiB over HTTP, 10 000 events; no redirects.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx2
import orjson
import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, open_websocket_url

from relay.audit import checkpoint_file, note
from relay.audit.anchors import Anchors
from relay.audit.note import NOTE_BYTES_MAX, NoteError
from relay.errors import AuditError
from relay.nostr.event import sign_event
from relay.nostr.keys import SecretKey
from relay.nostr.kinds import AUDIT_CHECKPOINT
from relay.outbound_http import bounded_body

NETWORK_SECONDS = 10.0
ANSWER_BYTES_MAX = 1 << 20
EVENTS_MAX = 10_000
_PAGE = 500
_LINE_BYTES_MAX = 1 << 20
_AUTH = 22242
_CHECKPOINT_PATH = "/audit/checkpoint"

P = ParamSpec("P")
T = TypeVar("T")


async def add(anchors: Anchors, source: str, token: str | None) -> None:
    """Give `anchors` all checkpoints of `source`.

    Raises:
        AuditError: it cannot be had, or has none: whoever names a source wants it compared.
        OSError: the file cannot be read.
    """
    scheme = source.partition("://")[0] if "://" in source else ""
    match scheme:
        case "http" | "https":
            anchors.add_note(source, await _within_time(source, _download, token))
        case "ws" | "wss":
            for text in await _within_time(source, _subscribe, anchors.pubkey):
                anchors.add_note(source, text)
        case "":
            # Nobody else waits for this process.
            _add_file(anchors, source)
            await trio.lowlevel.checkpoint()
        case _:
            raise AuditError(f"{source}: neither a file nor an address of http(s) or ws(s)")
    if not anchors.demand(source):
        raise AuditError(f"{source} has no checkpoint of this log")


def _add_file(anchors: Anchors, source: str) -> None:
    """A file of notes or of events, by its first byte."""
    path = Path(source)
    with path.open("rb") as file:
        events = file.read(1) in (b"{", b"[")
        file.seek(0)
        if events:
            for text in _notes_of_events(file, anchors, source):
                anchors.add_note(source, text)
            return
        # One note alone, as /audit/checkpoint gives it: the empty line that ends a record of the relay's file is not
        # there, and it is not torn for that.
        start = file.read(NOTE_BYTES_MAX + 1)
    with suppress(NoteError, UnicodeDecodeError):
        anchors.add(source, note.parse(start.decode()))
        return
    for checkpoint in checkpoint_file.read(path, lambda problem: _report(anchors, source, problem)):
        anchors.add(source, checkpoint)


def _report(anchors: Anchors, source: str, problem: checkpoint_file.Problem) -> None:
    if problem.torn:
        anchors.warn(f"{source}, line {problem.line}: {problem.what}")
    else:
        anchors.bad(source, f"line {problem.line}: {problem.what}")


def _notes_of_events(file: BinaryIO, anchors: Anchors, source: str) -> Iterator[str]:
    number = 0
    while line := file.readline(_LINE_BYTES_MAX):
        number += 1
        try:
            parsed = orjson.loads(line) if line.strip() else None
        except orjson.JSONDecodeError:
            anchors.bad(source, f"line {number} is not JSON")
            continue
        if parsed is not None and (text := _content(parsed, anchors.pubkey)) is not None:
            yield text


def _content(parsed: Any, pubkey: str) -> str | None:
    """The note in a checkpoint event of `pubkey`; the event's own signature adds nothing to the note's."""
    event = parsed[-1] if isinstance(parsed, list) and parsed else parsed
    if not isinstance(event, dict) or (event.get("kind"), event.get("pubkey")) != (AUDIT_CHECKPOINT, pubkey):
        return None
    content = event.get("content")
    return content if isinstance(content, str) else None


async def _within_time(source: str, fetch: Callable[[str, *Any], Awaitable[T]], *arguments: Any) -> T:
    try:
        with trio.fail_after(NETWORK_SECONDS):
            return await fetch(source, *arguments)
    except trio.TooSlowError:
        raise AuditError(f"{source}: no answer within {NETWORK_SECONDS:.0f} s") from None
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, HandshakeError, ConnectionClosed) as error:
        raise AuditError(f"{source}: cannot be asked: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Some of these say nothing themselves; then what brought them about does."""
    cause = error.__cause__ or error.__context__
    return str(error) or (f"{cause}" if cause is not None else "") or type(error).__name__


# -- http ------------------------------------------------------------------------------------------------------------


async def _download(url: str, token: str | None) -> str:
    parts = urlsplit(url)
    if parts.path in ("", "/"):
        url = urlunsplit(parts._replace(path=_CHECKPOINT_PATH))
    headers = {"Accept": "text/plain", "Accept-Encoding": "identity"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    client = httpx2.AsyncClient(timeout=NETWORK_SECONDS, follow_redirects=False)
    async with client, client.stream("GET", url, headers=headers) as response:
        body = await bounded_body(response, ANSWER_BYTES_MAX)
    if body is None:
        raise AuditError(f"{url}: the answer is too large")
    if response.status_code != 200:
        raise AuditError(f"{url}: status {response.status_code}: {body[:200].decode(errors='replace')}")
    return body.decode(errors="replace")


# -- websocket -------------------------------------------------------------------------------------------------------


async def _subscribe(url: str, pubkey: str) -> list[str]:
    """The notes in the checkpoint events that a relay keeps of `pubkey`, page by page from the newest."""
    async with open_websocket_url(url, max_message_size=ANSWER_BYTES_MAX) as websocket:
        asking = _Asking(websocket, url)
        notes: dict[str, str] = {}
        until: int | None = None
        while len(notes) < EVENTS_MAX:
            wanted: dict[str, Any] = {"kinds": [AUDIT_CHECKPOINT], "authors": [pubkey], "limit": _PAGE}
            page = await asking.page(wanted if until is None else {**wanted, "until": until})
            fresh = {str(event.get("id")): text for event in page if (text := _content(event, pubkey)) is not None}
            fresh = {key: text for key, text in fresh.items() if key not in notes}
            notes |= fresh
            times = [event["created_at"] for event in page if isinstance(event.get("created_at"), int)]
            if not fresh or len(page) < _PAGE or not times:
                break
            until = min(times)
    return list(notes.values())


class _Asking:
    """REQs on one connection; logs in (NIP-42) where the relay wants that, with a key made for the purpose.

    Without the token: it speaks for its owner's key, so that it would be refused with any other, and it is nothing that
    a relay which happens to keep the events should ever see.
    """

    def __init__(self, websocket: WebSocketConnection, url: str) -> None:
        self._websocket = websocket
        self._url = url
        self._challenge: str | None = None
        self._logged_in = False

    async def page(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """The stored events for one filter."""
        events: list[dict[str, Any]] = []
        await self._send(["REQ", "checkpoints", wanted])
        while True:
            match orjson.loads(await self._websocket.get_message()):
                case ["EVENT", "checkpoints", dict(event)]:
                    events.append(event)
                case ["EOSE", "checkpoints", *_]:
                    return events
                case ["AUTH", str(challenge), *_]:
                    self._challenge = challenge
                case ["OK", _, False, str(reason), *_]:
                    raise AuditError(f"{self._url}: the relay refuses the login: {reason}")
                case ["CLOSED", "checkpoints", str(reason), *_]:
                    if not reason.startswith("auth-required") or self._logged_in or self._challenge is None:
                        raise AuditError(f"{self._url}: the relay refuses: {reason}")
                    await self._log_in(self._challenge)
                    await self._send(["REQ", "checkpoints", wanted])
                case _:
                    pass  # notices, and answers to nothing of ours

    async def _log_in(self, challenge: str) -> None:
        tags = [["relay", self._url], ["challenge", challenge]]
        key = SecretKey.from_hex(os.urandom(32).hex())
        event = sign_event(key, created_at=int(time.time()), kind=_AUTH, tags=tags, content="")
        self._logged_in = True
        await self._send(["AUTH", orjson.Fragment(event.json)])

    async def _send(self, frame: list[Any]) -> None:
        await self._websocket.send_message(orjson.dumps(frame).decode())
