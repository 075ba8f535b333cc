"""`/api/agents`, described."""

from __future__ import annotations

from relay.http.openapi.parts import HEX64, STRING, UUID, Paths, Schema, answer, array, operation, record, ref
from relay.store.agent_list import ROWS_MAX

SCHEMAS: dict[str, Schema] = {
    "Agent": record(
        {
            "pubkey": HEX64,
            "name": STRING,
            "agent_type": STRING | {"description": "Empty where it is not known."},
            "channels": array(
                STRING, minItems=1, description="The names of the channels that the caller can read too."
            ),
            "channel_ids": array(UUID, minItems=1, description="The same channels in the same order."),
            "capabilities": array(STRING),
            "status": STRING | {"description": "`offline`, or what the agent said last: `online`, `away` …"},
        }
    )
}

PATHS: Paths = {
    "/api/agents": {
        "get": operation(
            "listAgents",
            "The agents that the caller shares channels with",
            tag="agents",
            scope="channels:read",
            description="Every member with the role `bot` of a channel that the caller can read, by name.",
            answers={200: answer("The agents.", array(ref("Agent"), maxItems=ROWS_MAX))},
        )
    }
}
