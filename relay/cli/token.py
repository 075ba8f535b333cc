"""`relay token mint|list|revoke`: API tokens, made and ended by the operator.

The text of a token, and the secret key if one was made for it, are printed once and kept nowhere. A token that is
revoked here is refused by the running relay from the next request on: it looks every token up every time. What is done
here is audited like everything else: the entry is written in the same transaction and chained by the running relay,
or by the next one that starts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, TypeVar
from uuid import uuid4

import trio
import typer

from relay.access import minting
from relay.access.identity import AUDIT_READ, KNOWN_SCOPES, PROXY_SUBMIT
from relay.access.minting import NAME_BYTES_MAX, MintProblem, NewToken
from relay.asyncpg_trio import Connection
from relay.asyncpg_trio.errors import UndefinedTableError
from relay.audit import outbox
from relay.audit.entry import Action, new_entry
from relay.cli.database import open_database
from relay.cli.options import DatabaseUrl, DataDir, load_settings
from relay.config import Settings
from relay.errors import MigrationError, Refusal, Refused
from relay.nostr import nip19
from relay.nostr.ids import parse_pubkey, parse_uuid
from relay.nostr.keys import SecretKey
from relay.store import channels, tokens
from relay.store.tokens import Revocation, Token

DAYS_MAX = 3650

T = TypeVar("T")

token_app = typer.Typer(help="API tokens for programs that talk to the relay.", no_args_is_help=True)


@token_app.command("mint")
def mint(
    name: Annotated[str, typer.Option(help="What the token is for.")],
    scopes: Annotated[str, typer.Option(help="Comma list, such as messages:read,messages:write.")],
    pubkey: Annotated[str | None, typer.Option(help="Key that the token speaks for; unset = a new key.")] = None,
    owner_pubkey: Annotated[str | None, typer.Option(help="Key of the person whose agent this is.")] = None,
    channel_list: Annotated[
        str | None, typer.Option("--channels", help="Comma list of channel ids that it is restricted to.")
    ] = None,
    expires_days: Annotated[
        int | None, typer.Option(min=1, max=DAYS_MAX, help="Days until it expires; unset = never.")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a token and print it. It cannot be shown again."""
    if channel_list is not None and AUDIT_READ in _scopes(scopes):
        raise typer.BadParameter(f"{AUDIT_READ} is about all channels at once", param_hint="--channels")
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    made = None if pubkey is not None else SecretKey.from_bytes(secrets.token_bytes(32))
    new = NewToken(
        tokens.new_text(),
        made.public_hex if made is not None else _pubkey(pubkey or "", "--pubkey"),
        _name(name),
        _scopes(scopes),
        _channel_ids(channel_list),
        expires_days,
        agent_owner=None if owner_pubkey is None else _pubkey(owner_pubkey, "--owner-pubkey"),
    )
    token: Token = trio.run(_with_database, settings, partial(_mint, new=new))
    typer.echo(f"id      {token.id}")
    typer.echo(f"pubkey  {token.owner} ({nip19.encode_npub(token.owner)})")
    typer.echo(f"scopes  {','.join(token.scopes)}")
    typer.echo(f"expires {_moment(token.expires_at, 'never')}")
    if made is not None:
        typer.echo(f"nsec    {nip19.encode_nsec(made.to_bytes().hex())}")
    typer.echo(f"token   {new.text}")
    typer.echo("Keep the last lines secret and safe: they are not shown again.", err=True)


@token_app.command("list")
def list_tokens(
    with_dead: Annotated[bool, typer.Option("--all", help="Revoked and expired ones too.")] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List tokens, newest first."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    found: list[Token] = trio.run(_with_database, settings, partial(tokens.newest, with_dead=with_dead))
    typer.echo(f"{'ID':36}  {'NAME':20}  {'KEY':16}  {'CREATED':20}  {'LAST USED':20}  {'STATE':8}  SCOPES")
    for token in found:
        typer.echo(
            f"{token.id:36}  {_cut(token.name, 20)}  {token.owner[:16]}  {_moment(token.created_at, ''):20}  "
            f"{_moment(token.last_used_at, 'never'):20}  {_state(token):8}  {_printable(','.join(token.scopes))}"
        )


@token_app.command("revoke")
def revoke(token_id: str, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """End a token for ever, by the ID that `list` shows. Exit code 1 if there is nothing to end."""
    canonical = parse_uuid(token_id)
    if canonical is None:
        raise typer.BadParameter("must be a UUID", param_hint="TOKEN_ID")
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    match trio.run(_with_database, settings, partial(_revoke, token_id=canonical)):
        case Revocation.DONE:
            typer.echo("revoked")
        case Revocation.ALREADY:
            raise Refused(Refusal("this token was revoked before"))
        case Revocation.UNKNOWN:
            raise Refused(Refusal("there is no such token"))


async def _with_database(settings: Settings, work: Callable[[Connection], Awaitable[T]]) -> T:
    async with open_database(settings) as con:
        try:
            return await work(con)
        except UndefinedTableError:
            raise MigrationError("this database has no tables yet, run `relay migrate up` first") from None


async def _mint(con: Connection, new: NewToken) -> Token:
    """One transaction: users, owner, token, audit entry. Raises Refused, and then nothing was done."""
    async with con.transaction():
        for channel_id in new.channel_ids or ():
            if await channels.get(con, channel_id) is None:
                raise Refused(Refusal(f"channel not found: {channel_id}"))
        match await minting.mint(con, new):
            case MintProblem.OWNED_NEEDS_SCOPES:
                missing = ", ".join(minting.missing_scopes(new.scopes))
                raise Refused(Refusal(f"an agent that has an owner also needs {missing}"))
            case MintProblem.OTHER_OWNER:
                raise Refused(Refusal("this agent already has a different owner"))
            case MintProblem.TOO_MANY | MintProblem.TOKEN_REVOKED:
                raise AssertionError("the operator is not limited, and has no token")
            case Token() as token:
                await _audit(con, Action.TOKEN_CREATED, **minting.told(token))
    return token


async def _revoke(con: Connection, *, token_id: str) -> Revocation:
    async with con.transaction():
        outcome = await tokens.revoke(con, token_id)
        if outcome is Revocation.DONE:
            await _audit(con, Action.TOKEN_REVOKED, token_id=token_id)
    return outcome


async def _audit(con: Connection, action: Action, **metadata: object) -> None:
    """The operator has no key here, so the entry has no actor."""
    metadata["by"] = "command line"
    await outbox.insert(con, [new_entry(action, time_us=time.time_ns() // 1000, uuid=str(uuid4()), metadata=metadata)])


# -- reading what was typed ------------------------------------------------------------------------------------------


def _name(text: str) -> str:
    if not text or len(text.encode()) > NAME_BYTES_MAX or not text.isprintable():
        raise typer.BadParameter(f"must be 1 to {NAME_BYTES_MAX} printable bytes", param_hint="--name")
    return text


def _scopes(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    known = [*sorted(KNOWN_SCOPES), AUDIT_READ, PROXY_SUBMIT]
    if unknown := [scope for scope in found if scope not in known]:
        text = f"unknown: {', '.join(unknown)}. Known are {', '.join(known)}"
        raise typer.BadParameter(text, param_hint="--scopes")
    if not found:
        raise typer.BadParameter("must not be empty", param_hint="--scopes")
    return found


def _pubkey(text: str, option: str) -> str:
    pubkey = parse_pubkey(text)
    if pubkey is None:
        raise typer.BadParameter("must be a public key, in 64 hex digits or as npub1…", param_hint=option)
    return pubkey


def _channel_ids(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    found = []
    for part in text.split(","):
        channel_id = parse_uuid(part.strip())
        if channel_id is None:
            raise typer.BadParameter("must be a comma list of UUIDs", param_hint="--channels")
        found.append(channel_id)
    return tuple(sorted(set(found)))


# -- printing what was found -----------------------------------------------------------------------------------------


def _moment(moment: datetime | None, otherwise: str) -> str:
    return otherwise if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expired else "active"


def _printable(text: str) -> str:
    """Names may come from clients: nothing in them gets to move the terminal's cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _cut(text: str, length: int) -> str:
    text = _printable(text)
    return (text if len(text) <= length else text[: length - 1] + "…").ljust(length)
