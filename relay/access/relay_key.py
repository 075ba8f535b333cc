"""The relay's own key: where it comes from, and that it is the right one.

In: the settings. Out: a `SecretKey`. It signs group metadata, membership notices and audit checkpoints, so a relay that
silently came up with another key would be a stranger to its clients and to its own audit log. Therefore:

- `SPROUT_RELAY_PRIVATE_KEY` wins. Otherwise `relay.key` in the data directory, made at the first start.
- The file is made under a temporary name, synced and linked: it exists whole or not at all, and never replaces one.
- The public key is recorded in the database; a node that has another one does not start.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

import structlog

from relay.asyncpg_trio import Connection, Pool
from relay.config import Settings
from relay.errors import ConfigError
from relay.nostr import nip19
from relay.nostr.keys import InvalidKey, SecretKey
from relay.store import relay_identity

FILE_NAME = "relay.key"

log = structlog.get_logger(__name__)


def obtain(settings: Settings, data_dir: Path) -> SecretKey:
    """The key from the settings, else from `data_dir`, made there if there is none.

    Raises:
        ConfigError: The setting or the file does not hold a key, or the file cannot be read or made.
    """
    if settings.relay_private_key is not None:
        return parse(settings.relay_private_key.get_secret_value(), "SPROUT_RELAY_PRIVATE_KEY")
    path = data_dir / FILE_NAME
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("the relay's key can be read by others, run chmod 600", path=str(path))
        return parse(path.read_text("ascii"), str(path))
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path}: the relay's key cannot be kept there: {error}") from error


def parse(text: str, source: str) -> SecretKey:
    """64 hex digits or an nsec. Raises ConfigError, naming `source` and never the text."""
    text = text.strip()
    try:
        if text.lower().startswith("nsec1"):
            _, secret = nip19.decode(text)
            return SecretKey.from_hex(str(secret))
        return SecretKey.from_hex(text)
    except (InvalidKey, nip19.InvalidBech32):
        raise ConfigError(f"{source}: not a secret key (64 hexadecimal digits, or nsec1…)") from None


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "w") as file:  # noqa: PTH123 -- a descriptor, not a path
            file.write(_new_secret() + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link fails where a rename would replace: of two first starts at once, both go on with the same key.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    log.info("made the relay's key", path=str(path))


def _new_secret() -> str:
    while True:
        candidate = secrets.token_bytes(32)
        with suppress(InvalidKey):  # zero or above the curve's order: one in 2^128
            return SecretKey.from_bytes(candidate).to_bytes().hex()


async def confirm(db: Connection | Pool, key: SecretKey) -> None:
    """Records the public key in the database, or compares it with the one recorded there.

    Raises:
        ConfigError: The database belongs to a relay with another key.
    """
    recorded = await relay_identity.claim(db, key.public_hex)
    if recorded != key.public_hex:
        raise ConfigError(
            f"SPROUT_RELAY_PRIVATE_KEY: this database belongs to the relay {recorded}, but the key found here is that "
            f"of {key.public_hex}. Set SPROUT_RELAY_PRIVATE_KEY to the secret key of {recorded} (or put the file "
            f"{FILE_NAME} of its data directory into this one)."
        )
