"""What every request that the relay itself makes has in common: an answer has a bound, and this machine is no proxy's.

In: an answer whose head has arrived. Out: its body. Timeouts, redirects and what a status means are the caller's.
"""

from __future__ import annotations

from ipaddress import ip_address

import httpx2
import trio


async def bounded_body(response: httpx2.Response, bytes_max: int) -> bytes | None:
    """The body as it was sent, not decompressed; None if it is larger than `bytes_max`.

    Raises:
        httpx2.HTTPError: The peer broke off.
    """
    body = bytearray()
    # Too much is a reason to cancel and not to leave: the library's inner generators end by exceptions only.
    with trio.CancelScope() as enough:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > bytes_max:
                enough.cancel()
    return None if enough.cancel_called else bytes(body)


def is_loopback(host: str | None) -> bool:
    """Whether the host of an address is this machine, by its name alone: nothing is looked up."""
    if host == "localhost":
        return True
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return False
