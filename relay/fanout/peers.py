"""The authenticated connections, found by what makes them lose something: their key, their token, what they queue.

Flows in: connections that come and go, from the hub. Flows out: lists of them. Nothing here waits; a connection stands
under the caller that it had when it came, whatever becomes of it later.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

from relay.access.identity import Caller
from relay.fanout.items import Peer

__all__ = ["Peers"]

_Key = TypeVar("_Key", bound=Hashable)
_Ordered = dict[Peer, None]


class Peers:
    """Attributes:
    backlogged: Connections with frames that the kernel has not taken, kept by their `Outbound`s. One that is being
        closed stays until its last frame has left, because that is still to be purged of what its key has lost.
    """

    __slots__ = ("_by_key", "_by_token", "_callers", "backlogged")

    def __init__(self) -> None:
        self._callers: dict[Peer, Caller] = {}
        self._by_key: dict[str, _Ordered] = {}
        self._by_token: dict[str, _Ordered] = {}
        self.backlogged: set[Peer] = set()

    def __len__(self) -> int:
        return len(self._callers)

    def connect(self, peer: Peer) -> None:
        self.disconnect(peer)
        caller = peer.caller
        assert caller is not None, "a connection without a key receives nothing"
        self._callers[peer] = caller
        self._by_key.setdefault(caller.pubkey, {})[peer] = None
        if caller.token_id is not None:
            self._by_token.setdefault(caller.token_id, {})[peer] = None
        peer.outbound.track(self.backlogged, peer)

    def disconnect(self, peer: Peer) -> str | None:
        """The key that has no connection any more, if this was its last. Harmless where it never was connected."""
        caller = self._callers.pop(peer, None)
        if caller is None:
            return None
        if caller.token_id is not None:
            _take_out(self._by_token, caller.token_id, peer)
        _take_out(self._by_key, caller.pubkey, peer)
        return None if caller.pubkey in self._by_key else caller.pubkey

    def of_key(self, pubkey: str) -> list[Peer]:
        return list(self._by_key.get(pubkey, ()))

    def with_token(self, token_id: str) -> list[Peer]:
        return list(self._by_token.get(token_id, ()))

    def token_ids(self) -> set[str]:
        return set(self._by_token)


def _take_out(index: dict[_Key, _Ordered], key: _Key, peer: Peer) -> None:
    peers = index[key]
    del peers[peer]
    if not peers:
        del index[key]
