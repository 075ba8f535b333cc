"""`audit`, described."""

from __future__ import annotations

from typing import Final

from relay.http.openapi.parts import (
    HEX64,
    STRING,
    TEXT,
    UUID,
    Paths,
    Schema,
    answer,
    array,
    enum,
    nullable,
    operation,
    path,
    query,
    record,
    ref,
)

_TAG: Final = "audit"
_SCOPE: Final = "audit:read"
_TOKEN_ALONE: Final[list[dict[str, list[str]]]] = [{"bearer": []}]

_SIZE: Final[Schema] = {"type": "integer", "format": "int64", "minimum": 0}
_SEQ: Final[Schema] = {"type": "integer", "format": "int64", "minimum": 1}
_INT64: Final[Schema] = {"type": "integer", "format": "int64"}
_BASE64: Final[Schema] = {"type": "string", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]{43}=$"}
_PATH: Final[Schema] = array(_BASE64, maxItems=64, description="Hashes, lowest first (RFC 6962, section 2.1).")
_VERSION: Final[Schema] = {"type": "integer", "const": 1}
_NOTE: Final[Schema] = {
    "type": "string",
    "description": "A signed note (c2sp.org/tlog-checkpoint): name of the log, size, root in Base64, an empty line, "
    "and a line for each signature: the relay's first, then those of witnesses.",
}

_FOR_AUDITORS: Final = "Only with an API token that the operator has made for auditing."
_NO_CHECKPOINT: Final = "There is no such checkpoint."
_DISAGREES: Final = (
    "The audit log is not what was signed (`detail` says how), or something else is wrong inside the relay."
)
_MAY_NOT: Final = "It is not an API token with the scope `audit:read`, or one that is restricted to channels."
_BUSY: Final = "This key asks too often."
_REFUSALS: Final = {400: "A parameter cannot be read.", 403: _MAY_NOT, 429: _BUSY, 500: _DISAGREES}

PATHS: Paths = {
    "/audit/checkpoint": {
        "get": operation(
            "showCheckpoint",
            "The newest signed checkpoint of the audit log",
            tag=_TAG,
            description=(
                "What the relay has signed about the first so many entries of its log. Keep it: with it a later "
                f"checkpoint can be shown to go on from here, or not to. {_FOR_AUDITORS}"
            ),
            security=_TOKEN_ALONE,
            scope=_SCOPE,
            parameters=[query("size", _SIZE, "The checkpoint at so many entries instead of the newest.")],
            answers={200: answer("The signed note.", _NOTE, TEXT)},
            refusals={**_REFUSALS, 404: "There is no checkpoint yet, or none of that size."},
            problems=True,
        )
    },
    "/audit/proof/{seq}": {
        "get": operation(
            "proveEntry",
            "An entry of the audit log, with the proof that it is in it",
            tag=_TAG,
            description=(
                "The entry as it is stored, the path from it to the root, and the signed note with this root. "
                f"`relay audit check` checks it anywhere. {_FOR_AUDITORS}"
            ),
            security=_TOKEN_ALONE,
            scope=_SCOPE,
            parameters=[
                path("seq", _SEQ, "The entry's number, from 1."),
                query("size", _SIZE, "Under the checkpoint at so many entries instead of the newest."),
            ],
            answers={200: answer("The proof.", ref("InclusionProof"))},
            refusals={**_REFUSALS, 404: f"{_NO_CHECKPOINT} Or it does not cover this entry; a later one may."},
            problems=True,
        )
    },
    "/audit/consistency": {
        "get": operation(
            "proveConsistency",
            "The proof that the audit log was only added to",
            tag=_TAG,
            description=f"Between two checkpoints, with both notes. {_FOR_AUDITORS}",
            security=_TOKEN_ALONE,
            scope=_SCOPE,
            parameters=[
                query("from", _SIZE, "Entries at the earlier checkpoint.", required=True),
                query("to", _SIZE, "Entries at the later one.", required=True),
            ],
            answers={200: answer("The proof.", ref("ConsistencyProof"))},
            refusals={**_REFUSALS, 404: f"{_NO_CHECKPOINT} Or `from` is the later one."},
            problems=True,
        )
    },
}

SCHEMAS: dict[str, Schema] = {
    "AuditEntry": record(
        {
            "seq": _SEQ,
            "uuid": UUID,
            "time_us": {**_INT64, "description": "Microseconds since 1970."},
            "action": STRING,
            "actor": nullable({**STRING, "description": "Mostly a public key."}),
            "event_id": nullable(STRING),
            "kind": nullable(_INT64),
            "channel_id": nullable(UUID),
            "metadata": {**STRING, "description": "The text of a JSON object; this text is what is hashed."},
            "version": {**_INT64, "description": "How the hash is made: 2; 1 for entries taken over from another log."},
            "prev_hash": HEX64,
            "hash": HEX64,
            "v1_time": nullable(STRING),
        }
    ),
    "InclusionProof": record(
        {
            "format": enum("relay-audit-inclusion"),
            "version": _VERSION,
            "entry": ref("AuditEntry"),
            "index": {**_SIZE, "description": "The leaf, from 0."},
            "size": _SIZE,
            "path": _PATH,
            "checkpoint": _NOTE,
        }
    ),
    "ConsistencyProof": record(
        {
            "format": enum("relay-audit-consistency"),
            "version": _VERSION,
            "from": _SIZE,
            "to": _SIZE,
            "path": _PATH,
            "old": _NOTE,
            "new": _NOTE,
        }
    ),
}
