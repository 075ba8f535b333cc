"""A client made with rust-nostr's SDK, to be told what to do: `python nostr_sdk_client.py RELAY_URL SECRET_HEX`.

The library needs asyncio, so it lives in a process of its own. One JSON object a line on standard input is one command:

    {"publish": {"kind": 9, "content": "hi", "tags": [["h", "..."]]}}    {"published": id} or {"failed": {url: reason}}
    {"fetch": {"kinds": [9]}}                                           {"fetched": [event, ...]}
    {"subscribe": {"kinds": [9]}}                                       {"subscribed": subscription id}

On standard output: {"ready": pubkey} once connected, the answers in order, and among them {"received": message} for
every message of the relay but EVENT, and {"event": event} for every new event. NIP-42 is the library's own doing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import timedelta
from typing import Any

from nostr_sdk import (
    Client,
    ClientBuilder,
    EventBuilder,
    Filter,
    Keys,
    Kind,
    RelayUrl,
    ReqTarget,
    SecretKey,
    SignerAuthenticator,
    Tag,
    uniffi_set_event_loop,
)

PATIENCE = timedelta(seconds=10)


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


async def listen(client: Client) -> None:
    stream = client.notifications()
    while (notification := await stream.next()) is not None:
        if notification.is_message():
            message = json.loads(notification.message.as_json())
            if message[0] != "EVENT":
                say(received=message)
        elif notification.is_new_event():
            say(event=json.loads(notification.event.as_json()))


async def publish(client: Client, keys: Keys, wanted: dict[str, Any]) -> None:
    builder = EventBuilder(Kind(wanted["kind"]), wanted["content"])
    event = builder.tags([Tag.parse(tag) for tag in wanted["tags"]]).finalize(keys)
    output = await client.send_event(event, ok_timeout=PATIENCE, authentication_timeout=PATIENCE)
    if output.success:
        say(published=output.id.to_hex())
    else:
        say(failed={str(url): reason for url, reason in output.failed.items()})


async def main(url: str, secret: str) -> None:
    loop = asyncio.get_running_loop()
    uniffi_set_event_loop(loop)  # the authenticator is called from a thread of the library
    keys = Keys(SecretKey.parse(secret))
    client = ClientBuilder().authenticator(SignerAuthenticator(keys)).build()
    await client.add_relay(RelayUrl.parse(url))
    listening = asyncio.create_task(listen(client))
    await client.connect(and_wait=PATIENCE)
    say(ready=keys.public_key().to_hex())
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        ((command, wanted),) = json.loads(line).items()
        if command == "publish":
            await publish(client, keys, wanted)
            continue
        target = ReqTarget.auto([Filter.from_json(json.dumps(wanted))])
        if command == "fetch":
            found = await client.fetch_events(target, timeout=PATIENCE)
            say(fetched=[json.loads(event.as_json()) for event in found])
        else:
            say(subscribed=(await client.subscribe(target)).id)
    listening.cancel()
    await client.shutdown()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
