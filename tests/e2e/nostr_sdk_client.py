"""A client made with rust-nostr's SDK, to be told what to do: `python nostr_sdk_client.py RELAY_URL SECRET_HEX`.

The library needs asyncio, so it lives in a process of its own. One JSON object a line on standard input is one command:

    {"publish": {"kind": 9, "content": "hi", "tags": [["h", "..."]]}}    {"published": id} or {"failed": reason}
    {"whisper": {"to": pubkey, "text": "..."}}                          the same, by NIP-17 and NIP-59
    {"fetch": {"kinds": [9]}}                                           {"fetched": [event, ...]}
    {"count": {"kinds": [9]}}                                           {"counted": n} or {"failed": reason}
    {"whispers": {}}                                                    {"whispers": [what NIP-17 was told to us]}
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
    Event,
    EventBuilder,
    Filter,
    Keys,
    Kind,
    NostrSdkError,
    PublicKey,
    RelayUrl,
    ReqTarget,
    SecretKey,
    SignerAuthenticator,
    Tag,
    Timestamp,
    UnwrappedGift,
    nip17_make_private_msg,
    uniffi_set_event_loop,
)

PATIENCE = timedelta(seconds=10)
COUNT_PATIENCE, COUNT_TRIES = timedelta(seconds=2), 5


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


class Commands:
    """One method a command."""

    def __init__(self, client: Client, url: RelayUrl, keys: Keys) -> None:
        self._client = client
        self._url = url
        self._keys = keys

    async def publish(self, wanted: dict[str, Any]) -> None:
        builder = EventBuilder(Kind(wanted["kind"]), wanted["content"]).tags([Tag.parse(tag) for tag in wanted["tags"]])
        if "created_at" in wanted:
            builder = builder.custom_created_at(Timestamp.from_secs(wanted["created_at"]))
        await self._send(builder.finalize(self._keys))

    async def whisper(self, wanted: dict[str, Any]) -> None:
        await self._send(nip17_make_private_msg(self._keys, PublicKey.parse(wanted["to"]), wanted["text"]))

    async def _send(self, event: Event) -> None:
        output = await self._client.send_event(event, ok_timeout=PATIENCE, authentication_timeout=PATIENCE)
        if output.success:
            say(published=output.id.to_hex())
        else:
            say(failed=", ".join(output.failed.values()))

    async def fetch(self, wanted: dict[str, Any]) -> None:
        say(fetched=[json.loads(event.as_json()) for event in await self._found(wanted)])

    async def _found(self, wanted: dict[str, Any]) -> list[Event]:
        target = ReqTarget.auto([Filter.from_json(json.dumps(wanted))])
        return list(await self._client.fetch_events(target, timeout=PATIENCE))

    async def count(self, wanted: dict[str, Any]) -> None:
        relay = await self._client.relay(self._url)
        assert relay is not None
        target = Filter.from_json(json.dumps(wanted))
        for left in reversed(range(COUNT_TRIES)):
            try:
                say(counted=await relay.count_events(target, COUNT_PATIENCE))
                return
            except NostrSdkError as error:
                # It listens for the answer only after it has sent the question, and a busy machine lets it miss one
                # that came at once; that the relay answered can be seen among the messages received.
                if left == 0 or "timeout" not in str(error):
                    say(failed=str(error))
                    return

    async def whispers(self, wanted: dict[str, Any]) -> None:
        assert wanted == {}
        told = []
        for wrap in await self._found({"kinds": [1059], "#p": [self._keys.public_key().to_hex()]}):
            rumor = UnwrappedGift.from_gift_wrap(self._keys, wrap).rumor()
            told.append(json.loads(rumor.as_json()) | {"wrap": json.loads(wrap.as_json())})
        say(whispers=sorted(told, key=lambda rumor: rumor["created_at"]))

    async def subscribe(self, wanted: dict[str, Any]) -> None:
        target = ReqTarget.auto([Filter.from_json(json.dumps(wanted))])
        say(subscribed=(await self._client.subscribe(target)).id)


async def main(address: str, secret: str) -> None:
    loop = asyncio.get_running_loop()
    uniffi_set_event_loop(loop)  # the authenticator is called from a thread of the library
    keys, url = Keys(SecretKey.parse(secret)), RelayUrl.parse(address)
    client = ClientBuilder().authenticator(SignerAuthenticator(keys)).build()
    await client.add_relay(url)
    listening = asyncio.create_task(listen(client))
    await client.connect(and_wait=PATIENCE)
    say(ready=keys.public_key().to_hex())
    commands = Commands(client, url, keys)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        ((command, wanted),) = json.loads(line).items()
        await getattr(commands, command)(wanted)
    listening.cancel()
    await client.shutdown()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
