"""Who sent a request to one of the routes beside the original's: whoever signed it (NIP-98), or showed a credential of
the older routes.

In: the current request and its body as it came. Out: a `Caller`, or a refusal in the words of the later original, whose
clients these routes are for. A signed request is good once; a client that sends the same one twice within a second adds
a tag of its own choosing (`nonce`) to the event, which gives it another id.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from quart import request

from relay.access.authenticate import NEEDS_TOKEN, NOT_LISTED, USED_BEFORE
from relay.access.identity import Caller
from relay.http.auth import authenticate, failed, services
from relay.http.refusals import ApiError
from relay.nostr.nip98 import SCHEME, Nip98Cause

NOT_LISTED_DETAIL: Final = "You must be a relay member to access this relay"

_TEXTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        Nip98Cause.NOT_BASE64.value: "invalid base64 in Nostr auth",
        Nip98Cause.NOT_AN_EVENT.value: "invalid NIP-98 event JSON",
        USED_BEFORE: "NIP-98: replay detected",
        NEEDS_TOKEN: "NIP-98: this relay requires a token",
    }
)
# Of the older routes, and what the later original says where nothing or no good key was shown.
_LATER: Final[Mapping[str, str]] = MappingProxyType(
    {"authentication required": "missing Nostr auth", "authentication failed": "invalid X-Pubkey hex"}
)


async def authenticate_signed(body: bytes, scope: str | None = None) -> Caller:
    """Who sent the current request, with the given right.

    Raises: ApiError with 401 or 403; what the store raises.
    """
    header = request.headers.get("Authorization", "")
    if header.startswith(SCHEME):
        return await _with_signature(header, body)
    try:
        return await authenticate(scope)
    except ApiError as error:
        if header.startswith("Bearer ") or error.error not in _LATER:
            raise
        raise ApiError(error.status, _LATER[error.error], error.message) from None


async def _with_signature(header: str, body: bytes) -> Caller:
    # With the query string, which these routes do not read: the signature is for this very address.
    query = request.query_string.decode("ascii", "replace")
    path = f"{request.path}?{query}" if query else request.path
    found = await services().authenticator.signed_request(
        header, path=path, method=request.method, body=body, now=time.time()
    )
    if isinstance(found, Caller):
        return found
    refused = failed(_TEXTS.get(found.cause, f"NIP-98: {found.cause}"), cause=f"nip98: {found.cause}")
    if found.cause == NOT_LISTED:
        # The key has proved itself, so it may know that this is the reason.
        raise ApiError(403, "relay_membership_required", NOT_LISTED_DETAIL)
    raise refused
