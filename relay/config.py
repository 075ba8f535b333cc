"""Settings: the only reader of the environment and of `relay.toml`.

Order of precedence: command line, environment, `relay.toml` in the working directory, the file that `SPROUT_CONFIG`
names, defaults. A value that does not parse stops the start, with all such errors at once. Names are the original's
where it has them, so that an operator's environment carries over; in `relay.toml` the same name stands in lower case
without its `SPROUT_` prefix (`bind_addr = "0.0.0.0:3000"`).

The table in README.md is made from the descriptions here (`python -m relay config docs`); a test compares them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from relay.errors import ConfigError

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})


def _setting(default: Any, variable: str, text: str, **constraints: Any) -> Any:
    name = variable.lower().removeprefix("sprout_")
    return Field(default, validation_alias=AliasChoices(variable, name), description=text, **constraints)


def _seconds(default: float, variable: str, text: str) -> Any:
    return _setting(default, variable, text, ge=0, le=86_400)


class Settings(BaseSettings):
    """One attribute a setting; see `describe()` for the table of names, defaults and texts."""

    model_config = SettingsConfigDict(extra="ignore", case_sensitive=True, populate_by_name=True, env_ignore_empty=True)

    # -- where -------------------------------------------------------------------------------------------------------
    bind_addr: str = _setting("127.0.0.1:3000", "SPROUT_BIND_ADDR", "Address and port of HTTP and WebSocket.")
    uds_path: Path | None = _setting(None, "SPROUT_UDS_PATH", "Also listen on this Unix socket.")
    relay_url: str = _setting(
        "ws://localhost:3000", "RELAY_URL", "Public address, as clients write it in their NIP-42 `relay` tag."
    )
    health_port: int = _setting(8080, "SPROUT_HEALTH_PORT", "Port of the health listener; 0 = none.", ge=0, le=65535)
    metrics_port: int = _setting(
        9102, "SPROUT_METRICS_PORT", "Port of the Prometheus listener; 0 = none.", ge=0, le=65535
    )
    admin_host: str = _setting("127.0.0.1", "SPROUT_ADMIN_HOST", "Address that health and metrics listen on.")
    cors_origins: str = _setting(
        "", "SPROUT_CORS_ORIGINS", "Comma list of origins for CORS and for the WebSocket upgrade; empty = any."
    )

    # -- database ----------------------------------------------------------------------------------------------------
    database_url: SecretStr | None = _setting(
        None, "DATABASE_URL", "PostgreSQL to use; unset = the embedded one in the data directory."
    )
    data_dir: Path = _setting(Path("relay-data"), "SPROUT_DATA_DIR", "Embedded PostgreSQL, relay key.")
    postgres_binaries: Path | None = _setting(
        None, "SPROUT_POSTGRES_BINARIES", "Directory with `postgres` and `initdb`; unset = search."
    )
    pool_size_max: int = _setting(20, "SPROUT_POOL_SIZE_MAX", "Most connections of the main pool.", ge=1, le=500)
    pool_size_min: int = _setting(2, "SPROUT_POOL_SIZE_MIN", "Connections opened at the start.", ge=0, le=500)
    pool_acquire_seconds: float = _seconds(3, "SPROUT_POOL_ACQUIRE_SECONDS", "Longest wait for a connection.")
    audit_pool_size_max: int = _setting(5, "SPROUT_AUDIT_POOL_SIZE_MAX", "Most connections of the audit.", ge=1, le=50)
    audit_pool_size_min: int = _setting(1, "SPROUT_AUDIT_POOL_SIZE_MIN", "Audit connections at the start.", ge=0, le=50)
    database_wait_seconds: float = _seconds(
        30, "SPROUT_DATABASE_WAIT_SECONDS", "How long the start waits for the database."
    )
    statement_seconds: float = _seconds(10, "SPROUT_STATEMENT_SECONDS", "Longest statement of the main pool.")
    lock_seconds: float = _seconds(3, "SPROUT_LOCK_SECONDS", "Longest wait for a row lock of a write.")

    # -- who may do what ---------------------------------------------------------------------------------------------
    relay_private_key: SecretStr | None = _setting(
        None, "SPROUT_RELAY_PRIVATE_KEY", "The relay's key (64 hex or nsec); unset = made once in the data directory."
    )
    require_auth_token: bool = _setting(False, "SPROUT_REQUIRE_AUTH_TOKEN", "Refuse logins that carry no API token.")
    pubkey_allowlist: bool = _setting(
        False, "SPROUT_PUBKEY_ALLOWLIST", "Logins without a token only for keys in the table `pubkey_allowlist`."
    )
    dev_x_pubkey: bool = _setting(
        False,
        "SPROUT_DEV_X_PUBKEY",
        "Development only: trust the `X-Pubkey` header on loopback connections that came through no proxy.",
    )

    okta_issuer: str = _setting("", "OKTA_ISSUER", "Issuer (`iss`) of JSON Web Tokens; empty = they are refused.")
    okta_audience: str = _setting("", "OKTA_AUDIENCE", "Audience (`aud`) that a JSON Web Token must name.")
    okta_jwks_uri: str = _setting("", "OKTA_JWKS_URI", "Where the keys of the issuer are fetched (JWKS).")
    okta_pubkey_claim: str = _setting("nostr_pubkey", "OKTA_PUBKEY_CLAIM", "Claim that names the Nostr key.")
    jwks_seconds: float = _seconds(300, "SPROUT_JWKS_SECONDS", "How long fetched keys are used before the next look.")
    token_check_seconds: float = _setting(
        10,
        "SPROUT_TOKEN_CHECK_SECONDS",
        "Longest time until a revoked token is noticed without a notice.",
        gt=0,
        le=3600,
    )

    # -- limits ------------------------------------------------------------------------------------------------------
    max_connections: int = _setting(10_000, "SPROUT_MAX_CONNECTIONS", "Most WebSocket connections.", ge=1)
    max_frame_bytes: int = _setting(131_072, "SPROUT_MAX_FRAME_BYTES", "Largest inbound message.", ge=1024)
    max_subscriptions: int = _setting(1024, "SPROUT_MAX_SUBSCRIPTIONS", "Most subscriptions of a connection.", ge=1)
    max_filters: int = _setting(10, "SPROUT_MAX_FILTERS", "Most filters of a REQ.", ge=1, le=100)
    max_limit: int = _setting(10_000, "SPROUT_MAX_LIMIT", "Most stored events a filter returns.", ge=1, le=100_000)
    default_limit: int = _setting(500, "SPROUT_DEFAULT_LIMIT", "Stored events of a filter without `limit`.", ge=1)
    max_content_bytes: int = _setting(262_144, "SPROUT_MAX_CONTENT_BYTES", "Largest event content.", ge=1)
    max_pending_events: int = _setting(
        64, "SPROUT_MAX_PENDING_EVENTS", "Events of one connection that may wait for their commit.", ge=1, le=2000
    )
    max_clock_drift_seconds: float = _seconds(
        900, "SPROUT_MAX_CLOCK_DRIFT_SECONDS", "Largest distance of `created_at` from the relay's clock."
    )
    max_body_bytes: int = _setting(1_048_576, "SPROUT_MAX_BODY_BYTES", "Largest HTTP request body.", ge=1024)
    body_seconds: float = _seconds(30, "SPROUT_BODY_SECONDS", "Longest time for an HTTP request body.")
    send_buffer: int = _setting(1000, "SPROUT_SEND_BUFFER", "Frames that may wait for one client.", ge=8)
    send_buffer_bytes: int = _setting(
        1 << 20, "SPROUT_SEND_BUFFER_BYTES", "Bytes that may wait for one client.", ge=65536
    )
    send_stall_seconds: float = _seconds(5, "SPROUT_SEND_STALL_SECONDS", "Longest time without progress of a client.")
    auth_seconds: float = _seconds(30, "SPROUT_AUTH_SECONDS", "Time that a new connection has to log in.")
    ping_seconds: float = _setting(30, "SPROUT_PING_SECONDS", "Period of the WebSocket pings.", gt=0, le=3600)
    handshake_seconds: float = _seconds(10, "SPROUT_HANDSHAKE_SECONDS", "Time for a request head or a handshake.")
    ephemeral_ttl_override: int | None = _setting(
        None, "SPROUT_EPHEMERAL_TTL_OVERRIDE", "Replaces the TTL (seconds) of every ephemeral channel.", gt=0
    )

    reaper_seconds: float = _setting(
        60,
        "SPROUT_REAPER_INTERVAL_SECS",
        "Period of the look for channels and events whose time is over.",
        gt=0,
        le=86_400,
    )
    presence_seconds: float = _setting(90, "SPROUT_PRESENCE_SECONDS", "Life of a presence status.", gt=0, le=86_400)
    media_base_url: str = _setting(
        "", "SPROUT_MEDIA_BASE_URL", "Where uploaded media are found; empty = /media under RELAY_URL."
    )

    # -- rates (a bucket that holds a minute's worth; 0 = no limit) ---------------------------------------------------
    max_concurrent_handlers: int = _setting(
        1024, "SPROUT_MAX_CONCURRENT_HANDLERS", "REQ, COUNT and EVENT messages that are being handled at once.", ge=1
    )
    handler_wait_seconds: float = _seconds(
        3, "SPROUT_HANDLER_WAIT_SECONDS", "How long a message waits for its turn before it is refused."
    )
    rate_messages: int = _setting(120_000, "SPROUT_RATE_MESSAGES", "Messages a minute of one connection.", ge=0)
    rate_events: int = _setting(60_000, "SPROUT_RATE_EVENTS", "EVENTs a minute of one key.", ge=0)
    rate_requests: int = _setting(60_000, "SPROUT_RATE_REQUESTS", "REQ and COUNT a minute of one key.", ge=0)
    mint_rate_limit: int = _setting(
        50, "SPROUT_MINT_RATE_LIMIT", "API tokens that one key may ask for over HTTP within an hour.", ge=0
    )
    rate_connections: int = _setting(
        600, "SPROUT_RATE_CONNECTIONS", "New WebSocket connections a minute of one address; loopback is exempt.", ge=0
    )

    # -- queues and caches -------------------------------------------------------------------------------------------
    commit_queue: int = _setting(2000, "SPROUT_COMMIT_QUEUE", "Admitted events that may wait for a commit.", ge=1)
    commit_batch: int = _setting(500, "SPROUT_COMMIT_BATCH", "Most events stored in one transaction.", ge=1, le=5000)
    effect_workers: int = _setting(4, "SPROUT_EFFECT_WORKERS", "Workers for events that change state.", ge=1, le=32)
    fanout_queue: int = _setting(64, "SPROUT_FANOUT_QUEUE", "Batches that may wait for the fan-out.", ge=1)
    audit_queue: int = _setting(1000, "SPROUT_AUDIT_QUEUE", "Entries that may wait for the audit worker.", ge=1)
    audit_batch: int = _setting(
        256, "SPROUT_AUDIT_BATCH", "Most audit entries chained in one transaction.", ge=1, le=500
    )
    audit_linger_seconds: float = _seconds(0.05, "SPROUT_AUDIT_LINGER_SECONDS", "Wait for an audit batch to fill.")
    cache_entries: int = _setting(10_000, "SPROUT_CACHE_ENTRIES", "Entries of each access cache.", ge=1)
    cache_seconds: float = _seconds(10, "SPROUT_CACHE_SECONDS", "Life of an entry of an access cache.")

    # -- audit log ---------------------------------------------------------------------------------------------------
    audit_checkpoint_entries: int = _setting(
        10_000, "SPROUT_AUDIT_CHECKPOINT_ENTRIES", "Entries after which a checkpoint is signed.", ge=1
    )
    audit_checkpoint_seconds: float = _setting(
        60,
        "SPROUT_AUDIT_CHECKPOINT_SECONDS",
        "Time after which one is signed if there are new entries.",
        gt=0,
        le=86_400,
    )
    audit_checkpoint_file: Path | None = _setting(
        None,
        "SPROUT_AUDIT_CHECKPOINT_FILE",
        "Where checkpoints are appended; unset = audit-checkpoints.txt in the data directory.",
    )
    audit_publish_checkpoints: bool = _setting(
        True, "SPROUT_AUDIT_PUBLISH_CHECKPOINTS", "Publish each checkpoint as an event of kind 48010."
    )
    audit_spool_file: Path | None = _setting(
        None,
        "SPROUT_AUDIT_SPOOL_FILE",
        "Where entries wait that the database could not take; unset = audit-spool.jsonl in the data directory.",
    )
    audit_witnesses: str = _setting(
        "",
        "SPROUT_AUDIT_WITNESSES",
        "Relays that cosign our checkpoints: addresses with the witness's public key behind a #, separated by commas.",
    )
    audit_witness_for: str = _setting(
        "",
        "SPROUT_AUDIT_WITNESS_FOR",
        "Public keys (hex or npub) of relays whose checkpoints this one cosigns, separated by commas.",
    )

    # -- stopping ----------------------------------------------------------------------------------------------------
    grace_seconds: float | None = _setting(
        None,
        "SPROUT_GRACE_SECONDS",
        "Time between readiness 503 and the end of accepting; unset = 0 on the embedded database, 5 otherwise.",
        ge=0,
        le=600,
    )
    close_seconds: float = _seconds(2, "SPROUT_CLOSE_SECONDS", "Time for connections to end.")
    flush_seconds: float = _seconds(1, "SPROUT_FLUSH_SECONDS", "Time to send what is queued for a client.")
    audit_drain_seconds: float = _seconds(5, "SPROUT_AUDIT_DRAIN_SECONDS", "Time for the audit queue to drain.")
    shutdown_seconds: float = _setting(
        8, "SPROUT_SHUTDOWN_SECONDS", "The process ends by then whatever happens (the grace not counted).", gt=0, le=600
    )

    # -- logs --------------------------------------------------------------------------------------------------------
    log_level: str = _setting("info", "SPROUT_LOG_LEVEL", "debug, info, warning or error.")
    log_format: str = _setting("auto", "SPROUT_LOG_FORMAT", "json, console, or auto (console on a terminal).")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = [Path("relay.toml")]
        if other := os.environ.get("SPROUT_CONFIG"):
            files.append(Path(other))
        tomls = [TomlConfigSettingsSource(settings_cls, toml_file=path) for path in files]
        return (init_settings, env_settings, *tomls)

    @field_validator("bind_addr")
    @classmethod
    def _address(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("relay_url")
    @classmethod
    def _websocket_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError("must be a ws:// or wss:// address with a host")
        return value

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value.lower() not in ("debug", "info", "warning", "error"):
            raise ValueError("must be debug, info, warning or error")
        return value.lower()

    @field_validator("log_format")
    @classmethod
    def _format(cls, value: str) -> str:
        if value.lower() not in ("auto", "json", "console"):
            raise ValueError("must be auto, json or console")
        return value.lower()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.pool_size_min > self.pool_size_max:
            raise ValueError("SPROUT_POOL_SIZE_MIN is larger than SPROUT_POOL_SIZE_MAX")
        if self.audit_pool_size_min > self.audit_pool_size_max:
            raise ValueError("SPROUT_AUDIT_POOL_SIZE_MIN is larger than SPROUT_AUDIT_POOL_SIZE_MAX")
        if self.default_limit > self.max_limit:
            raise ValueError("SPROUT_DEFAULT_LIMIT is larger than SPROUT_MAX_LIMIT")
        if self.dev_x_pubkey and self.relay_host not in LOOPBACK_HOSTS:
            raise ValueError("SPROUT_DEV_X_PUBKEY needs a loopback host in RELAY_URL: anybody could be anyone")
        if bool(self.okta_issuer) != bool(self.okta_jwks_uri) or bool(self.okta_issuer) != bool(self.okta_audience):
            raise ValueError("OKTA_ISSUER, OKTA_AUDIENCE and OKTA_JWKS_URI must be set together")
        if self.audit_drain_seconds >= self.shutdown_seconds:
            raise ValueError("SPROUT_SHUTDOWN_SECONDS must be longer than SPROUT_AUDIT_DRAIN_SECONDS")
        return self

    @property
    def host(self) -> str:
        return split_address(self.bind_addr)[0]

    @property
    def port(self) -> int:
        return split_address(self.bind_addr)[1]

    @property
    def relay_host(self) -> str:
        return (urlsplit(self.relay_url).hostname or "").lower()

    @property
    def embedded(self) -> bool:
        """True when the relay brings its own PostgreSQL."""
        return self.database_url is None

    @property
    def grace(self) -> float:
        if self.grace_seconds is not None:
            return self.grace_seconds
        return 0.0 if self.embedded else 5.0

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        return tuple(origin.strip() for origin in self.cors_origins.split(",") if origin.strip())


def split_address(value: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` in two parts.

    Raises:
        ValueError: There is no port, or it is not one.
    """
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be host:port")
    return host.strip("[]"), int(port)


def load(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Reads the settings once. `overrides` are those of the command line, by attribute name.

    Raises:
        ConfigError: With every wrong value, one a line, by the name under which it was set.
    """
    try:
        return Settings(**{name: value for name, value in (overrides or {}).items() if value is not None})
    except ValidationError as error:
        lines = [f"{_variable(item['loc'])}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()]
        raise ConfigError("\n".join(lines)) from error
    except (OSError, ValueError) as error:  # a relay.toml that cannot be read or is not TOML
        raise ConfigError(f"relay.toml: {error}") from error


def _variable(location: tuple[int | str, ...]) -> str:
    if not location:
        return "settings"
    first = str(location[0])
    for name, variable, _, _ in describe():
        if first.lower() in (name, variable.lower()):
            return variable
    return first


def describe() -> list[tuple[str, str, str, str]]:
    """(attribute, environment variable, default, text) of every setting, in the order of this file."""
    rows = []
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        assert isinstance(alias, AliasChoices)
        default = "" if field.default is None else str(field.default)
        rows.append((name, str(alias.choices[0]), default, field.description or ""))
    return rows
