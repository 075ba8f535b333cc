"""From a request to a `Caller`: the credentials of an `/api` route, in the order in which they count.

1. `Authorization: Nostr …` is for the route that makes tokens; `Bearer sprout_…` is an API token; any other bearer
   token is a JSON Web Token of the configured identity provider, or refused (and never falls through). Other schemes
   are as good as none.
2. `X-Pubkey`, for development, if every one of the conditions in `_header_is_trusted` holds.
3. Nothing: 401.

A caller is worth one statement at most. Scopes and a token's list of channels are checked here too; membership is not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from quart import current_app, request

from relay.access.authenticate import AuthRefusal, TokenProblem
from relay.access.identity import Caller
from relay.audit.entry import Action
from relay.config import LOOPBACK_HOSTS, Settings
from relay.http.refusals import ApiError
from relay.http.services import Services
from relay.nostr.ids import parse_hex64, parse_uuid
from relay.nostr.keys import is_valid_pubkey
from relay.nostr.nip98 import SCHEME
from relay.store import tokens

NIP98_ELSEWHERE: Final = "NIP-98 auth is only supported for POST /api/tokens"
NOT_PERMITTED: Final = "Token does not have access to this channel"
NOT_A_MEMBER: Final = "not a member of this channel"

# Headers that only something between the client and us sets.
_PROXY_NAMES: Final = frozenset(
    {
        "forwarded",
        "via",
        "cdn-loop",
        "true-client-ip",
        "cf-connecting-ip",
        "cf-ray",
        "fastly-client-ip",
        "fly-client-ip",
        "remote-user",
    }
)
_PROXY_PREFIXES: Final = (
    "x-forwarded",
    "x-real-",
    "x-client-",
    "x-cluster-",
    "x-original-",
    "x-envoy-",
    "x-proxy",
    "x-nginx-",
    "x-remote-",
    "x-scheme",
    "x-amzn-",
    "x-amz-cf-",
    "x-azure-",
    "proxy-",
    "ssl-client-",
)
# What clients speak today. A proxy without further orders speaks HTTP/1.0, as nginx has done for twenty years.
_DIRECT_VERSIONS: Final = ("1.1", "2")


def services() -> Services:
    """The parts of the relay behind the current request."""
    found = current_app.extensions["relay"]
    assert isinstance(found, Services)
    return found


async def authenticate(scope: str | None = None) -> Caller:
    """Who sent the current request, with the given right.

    Raises: ApiError with 401 or 403; what the store raises.
    """
    caller = await _identify()
    if scope is not None and not caller.has(scope):
        raise ApiError(403, "insufficient_scope", f"token missing required scope: {scope}")
    return caller


def permit_channel(caller: Caller, channel_id: str) -> None:
    """Raises ApiError (403) where the caller's token is restricted to other channels."""
    if not caller.may_enter(channel_id):
        raise ApiError(403, "channel_not_permitted", NOT_PERMITTED)


def permitted_channel(caller: Caller, text: str, refusal: str = "invalid channel UUID") -> str:
    """The id of a channel that the caller's credential reaches; whether the caller may read it is asked with the rest.

    Raises: ApiError (400 with this refusal, 403).
    """
    channel_id = parse_uuid(text)
    if channel_id is None:
        raise ApiError(400, refusal)
    permit_channel(caller, channel_id)
    return channel_id


async def authenticate_to_mint(body: bytes) -> Caller:
    """Who asks for a token with this body: as everywhere else, or by a signature of this very request (NIP-98).

    Raises: ApiError with 401; what the store raises.
    """
    authorization = request.headers.get("Authorization", "")
    if not authorization.startswith(SCHEME):
        return await authenticate()
    found = await services().authenticator.mint_request(authorization, body, now=time.time())
    if isinstance(found, AuthRefusal):
        raise failed("invalid_auth", found.text, cause=found.cause)
    return found


def failed(code: str, message: str | None = None, *, cause: str | None = None) -> ApiError:
    """A credential that was shown and is no good: counted for the audit by the address that showed it.

    `cause` is for the audit alone.
    """
    client = request.scope.get("client")
    reason = f"http: {code if cause is None else cause}"
    services().ingest.note(Action.AUTH_FAILURE, str(client[0]) if client else "unix socket", reason)
    return ApiError(401, code, message)


async def _identify() -> Caller:
    authorization = request.headers.get("Authorization", "")
    if authorization.startswith(SCHEME):
        raise ApiError(401, "nip98_not_supported", NIP98_ELSEWHERE)
    if authorization.startswith("Bearer "):
        return await _with_bearer(authorization.removeprefix("Bearer "))
    keys = request.headers.getlist("X-Pubkey")
    if keys and _header_is_trusted(services().settings, request.scope, request.headers):
        return await _with_header(keys)
    raise ApiError(401, "authentication required")


async def _with_bearer(text: str) -> Caller:
    if not text.startswith(tokens.PREFIX):
        caller = await services().authenticator.json_web_token(text, now=time.time())
        if caller is None:
            raise failed("authentication failed")
        return caller
    found = await services().authenticator.bearer(text)
    if isinstance(found, TokenProblem):
        raise failed(found.value)
    return found


async def _with_header(keys: list[str]) -> Caller:
    pubkey = parse_hex64(keys[0])
    if len(keys) != 1 or pubkey is None or not is_valid_pubkey(pubkey):
        raise failed("authentication failed")
    return await services().authenticator.trusted_header(pubkey)


def _header_is_trusted(settings: Settings, scope: Mapping[str, Any], headers: Iterable[tuple[str, str]]) -> bool:
    """Whether `X-Pubkey` counts: switched on, a relay that nobody else reaches, and nobody in between.

    A proxy on this machine is loopback too, and behind it everybody is. Most say what they are, or speak as no client
    does (HTTP/1.0, one connection a request). One that is told to hide, or that passes bytes on without reading them,
    cannot be told from a client: hence the switch, and the address that the relay goes by.

    The last two lines are about the developer's own browser: a page from elsewhere, or one whose name was pointed at
    this machine, can reach a loopback port and set headers.
    """
    named: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        named[name] = f"{named[name]},{value}" if name in named else value
    return (
        settings.dev_x_pubkey
        and not settings.require_auth_token
        and settings.relay_host in LOOPBACK_HOSTS
        and _is_loopback(scope.get("client"))
        and _is_loopback(scope.get("server"))
        and scope.get("http_version") in _DIRECT_VERSIONS
        and "close" not in [option.strip() for option in named.get("connection", "").lower().split(",")]
        and not any(name in _PROXY_NAMES or name.startswith(_PROXY_PREFIXES) for name in named)
        and _names_this_machine("//" + named.get("host", ""))
        and ("origin" not in named or _names_this_machine(named["origin"]))
    )


def _is_loopback(end: Any) -> bool:
    """Whether one end of the connection is a loopback address. A Unix socket is none: proxies like to use them."""
    if not end:
        return False
    try:
        address = ip_address(end[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _names_this_machine(url: str) -> bool:
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    return host is not None and (host in LOOPBACK_HOSTS or host.endswith(".localhost"))
