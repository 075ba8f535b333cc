"""The EVENT frames of some events for whichever subscriptions get just these: made once, not once for each of them.

Flows in: the events in their order and a subscription's prefix (`["EVENT",<sub id>,`). Flows out: the bytes of all the
frames in one piece for one write, or the frames one by one with their channels, for a connection that takes only part
of them. Owned by the `Round` in which the events are delivered; no socket and no permission here.

Theory. The frames of two subscriptions differ in the prefix and, where that is longer, in the length that each head
states. So everything else is laid out once for each length of prefix, as the pieces that stand between the prefixes;
`prefix.join(pieces)` is then the whole output of a connection, by one call and one copy:

    head 1 | prefix | event 1 ] head 2 | prefix | event 2 ] head 3 | prefix | event 3 ]
    ------            -----------------          -----------------            ---------

Many clients call their subscription by the same name, and then even that copy is the same: the last one is kept. Only
the last, because a thousand of them would be a thousand times the events.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.fanout.backlog import Frame
from relay.fanout.items import Live
from relay.nostr.messages import event_ws_frame, ws_frame_head

__all__ = ["SharedFrames"]


class SharedFrames:
    """`lives`: the events, at least one, in the order in which they are sent."""

    __slots__ = ("_apart", "_joined", "_lives", "_pieces", "_prefix", "count")

    def __init__(self, lives: Sequence[Live]) -> None:
        assert lives
        self._lives = lives
        self.count = len(lives)
        self._pieces: dict[int, list[bytes]] = {}  # by the length of the prefix
        self._prefix: bytes | None = None
        self._joined = b""
        self._apart: list[Frame] | None = None  # of the same prefix

    def joined(self, prefix: bytes) -> bytes:
        """All frames of a subscription with this prefix."""
        if prefix != self._prefix:
            pieces = self._pieces.get(len(prefix))
            if pieces is None:
                pieces = self._pieces[len(prefix)] = self._lay_out(len(prefix))
            self._prefix, self._joined, self._apart = prefix, prefix.join(pieces), None
        return self._joined

    def apart(self, prefix: bytes) -> Sequence[Frame]:
        """The same, one by one. Connections that fall behind together keep one copy."""
        if self._apart is None or prefix != self._prefix:
            self.joined(prefix)
            self._apart = [(event_ws_frame(prefix, live.event.json), live.channel_id) for live in self._lives]
        return self._apart

    def _lay_out(self, prefix_length: int) -> list[bytes]:
        pieces = []
        before = b""
        for live in self._lives:
            json = live.event.json
            pieces.append(before + ws_frame_head(prefix_length + len(json) + 1))
            before = json + b"]"
        pieces.append(before)
        return pieces
