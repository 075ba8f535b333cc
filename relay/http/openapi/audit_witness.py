"""`audit_witness`, described: cosignatures for other relays' checkpoints."""

from __future__ import annotations

from relay.http.openapi.parts import NOBODY, TEXT, Operation, Paths, Schema, answer, operation

_REQUEST: Schema = {
    "type": "string",
    "pattern": "^old (0|[1-9][0-9]*)\\n([A-Za-z0-9+/]{43}=\\n){0,63}\\n",
    "description": "`old` and the size that the witness cosigned last, a line for each hash of the consistency proof, "
    "an empty line, and the signed checkpoint.",
}
_LINES: Schema = {"type": "string", "pattern": "^(— [^\\s]+ [A-Za-z0-9+/]+=*\\n)+$"}
_SIZE: Schema = {"type": "string", "pattern": "^(0|[1-9][0-9]*)\\n$"}

SCHEMAS: dict[str, Schema] = {}


def _add_checkpoint() -> Operation:
    found = operation(
        "addCheckpoint",
        "Have a checkpoint of another relay's audit log cosigned",
        tag="audit",
        description="The protocol of c2sp.org/tlog-witness. The credential is the signature of the checkpoint, by the "
        "key of a log that this relay witnesses.",
        security=NOBODY,
        answers={200: answer("The lines of the cosignatures.", _LINES, TEXT)},
        refusals={
            400: "That is no request, or its old size is larger than the checkpoint's.",
            403: "The log's key has not signed the checkpoint, or its log has gone on under a later name.",
            404: "This relay does not witness that log.",
            408: "The body did not arrive in time.",
            422: "The proof does not show that the log continues what was cosigned.",
            429: "Too many requests from this address.",
        },
        problems=True,
    )
    found["requestBody"] = {"required": True, "content": {TEXT: {"schema": _REQUEST}}}
    found["responses"]["409"] = answer(
        "The old size is not what this witness cosigned last (or the root at that size is another one): the size that "
        "it has.",
        _SIZE,
        "text/x.tlog.size",
    )
    return found


PATHS: Paths = {"/audit/witness/add-checkpoint": {"post": _add_checkpoint()}}
