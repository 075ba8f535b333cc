"""`GET /api/agents`: the bots of the channels that the caller can read, with their channels and whether they are there.

Two statements: the caller, the agents. A bot that shares no visible channel with the caller is not listed: that it
exists is nobody's business. Who is there is known to this process's memory.
"""

from __future__ import annotations

from typing import Final

from quart import Blueprint, Response

from relay.access.scopes import CHANNELS_READ
from relay.fanout.presence import OFFLINE
from relay.http.auth import authenticate, services
from relay.http.refusals import json_response
from relay.store import agent_list

_NAME_DIGITS: Final = 8
"""What stands for an agent without a name: `agent-` and so many digits of the key."""

routes = Blueprint("agents", __name__)


@routes.get("/api/agents")
async def list_agents() -> Response:
    caller = await authenticate(CHANNELS_READ)
    parts = services()
    found = await agent_list.agents(parts.pool, caller.pubkey, allowed=caller.channel_ids)
    said = parts.hub.presence.status(agent.pubkey for agent in found)
    rows = [
        {
            "pubkey": agent.pubkey,
            "name": f"agent-{agent.pubkey[:_NAME_DIGITS]}" if agent.display_name is None else agent.display_name,
            "agent_type": agent.agent_type or "",
            "channels": agent.channel_names,
            "channel_ids": agent.channel_ids,
            "capabilities": agent.capabilities,
            "status": said.get(agent.pubkey, OFFLINE),
        }
        for agent in found
    ]
    return json_response(rows)
