// A client made with nostr-tools, to be told what to do: `node client.js RELAY_URL SECRET_HEX [reactive]`.
//
// One JSON object a line on standard input is one command, one on standard output its answer:
//
//     {"publish": {"kind": 9, "content": "hi", "tags": [["h", "..."]]}}   {"published": id} or {"failed": reason}
//     {"react": {"to": event, "content": "+", "tags": []}}                the same, by NIP-25
//     {"whisper": {"to": pubkey, "text": "..."}}                          the same, by NIP-17 and NIP-59
//     {"group": {"do": "PutUser", "arguments": [id, ...], "tags": []}}    the same, by a template of NIP-29
//     {"fetch": {"kinds": [9]}}                                           {"fetched": [event, ...]}
//     {"count": {"kinds": [9]}}                                           {"counted": n} or {"failed": reason}
//     {"whispers": {}}                                                    {"whispers": [what NIP-17 was told to us]}
//     {"load_group": id}                                                  {"group": group} or {"failed": reason}
//     {"subscribe": {"kinds": [9]}}                                       {"subscribed": name}
//     {"unsubscribe": name}                                               {"unsubscribed": name}
//
// Among the answers: {"ready": pubkey} at the beginning, {"event": event, "subscription": name} for what arrives,
// {"received": ["EOSE" | "CLOSED", name, ...]}, {"received": ["NOTICE", text]}, and {"wrong": text, ...} for what the
// library rejects. It logs in as soon as it is asked to, or, if reactive, when a request was refused for want of it.

import { createInterface } from 'node:readline'
import * as nip11 from 'nostr-tools/nip11'
import * as nip17 from 'nostr-tools/nip17'
import * as nip25 from 'nostr-tools/nip25'
import * as nip29 from 'nostr-tools/nip29'
import { finalizeEvent, getPublicKey } from 'nostr-tools/pure'
import { SimplePool } from 'nostr-tools/pool'
import { hexToBytes } from 'nostr-tools/utils'

const PATIENCE_MS = 60_000 // longer than whoever waits for the answer waits
const [url, secretHex, mode] = process.argv.slice(2)
const secret = hexToBytes(secretHex)
const pubkey = getPublicKey(secret)
const sign = async template => finalizeEvent(template, secret)
const pool = new SimplePool({
  idleTimeout: PATIENCE_MS,
  automaticallyAuth: () => (mode === 'reactive' ? null : sign),
})
const subscriptions = new Map()

function say(line) {
  process.stdout.write(JSON.stringify(line) + '\n')
}

async function connection() {
  const relay = await pool.ensureRelay(url)
  relay.publishTimeout = PATIENCE_MS
  relay.onnotice = text => say({ received: ['NOTICE', text] })
  return relay
}

async function publish(event) {
  await Promise.all(pool.publish([url], event, { onauth: sign, maxWait: PATIENCE_MS }))
  return { published: event.id }
}

async function fetchAll(filter) {
  const events = []
  const [{ reason }] = await new Promise(resolve => {
    pool.subscribeEose([url], filter, {
      onevent: event => events.push(event),
      oninvalidevent: event => say({ wrong: 'an event that was not asked for', event }),
      onclose: resolve,
      onauth: sign,
      maxWait: PATIENCE_MS,
    })
  })
  if (reason !== 'closed automatically on eose') throw new Error(reason)
  return events
}

// Before what the library does not repeat after a login: its counts, and its queries of NIP-29.
const logIn = () => fetchAll({ kinds: [0], authors: [pubkey] })

const commands = {
  publish: ({ kind, content, tags, created_at = Math.floor(Date.now() / 1000) }) =>
    publish(finalizeEvent({ kind, content, tags, created_at }, secret)),
  react: ({ to, content, tags }) =>
    publish(nip25.finishReactionEvent({ content, tags, created_at: Math.floor(Date.now() / 1000) }, to, secret)),
  whisper: ({ to, text }) => publish(nip17.wrapEvent(secret, { publicKey: to }, text)),
  group: ({ do: what, arguments: given, tags }) => {
    const template = nip29[`generate${what}EventTemplate`](...given)
    return publish(finalizeEvent({ ...template, tags: [...template.tags, ...tags] }, secret))
  },
  fetch: async filter => ({ fetched: await fetchAll(filter) }),
  count: async filter => {
    await logIn()
    return { counted: await (await connection()).count([filter], {}) }
  },
  whispers: async () => {
    const wraps = await fetchAll({ kinds: [1059], '#p': [pubkey] })
    const told = wraps.map(wrap => ({ ...nip17.unwrapEvent(wrap, secret), wrap }))
    return { whispers: told.sort((one, other) => one.created_at - other.created_at) }
  },
  load_group: async id => {
    await logIn()
    const information = await nip11.fetchRelayInformation(url)
    // The library takes the key in the relay's document for that of the groups; NIP-11 names it `self`.
    const relayInformation = { ...information, pubkey: information.self }
    return { group: await nip29.loadGroup({ pool, groupReference: { host: url, id }, relayInformation }) }
  },
  subscribe: async filter => {
    const name = `subscription-${subscriptions.size}`
    const closer = pool.subscribe([url], filter, {
      onevent: event => say({ event, subscription: name }),
      oninvalidevent: event => say({ wrong: 'an event that was not asked for', event }),
      oneose: () => say({ received: ['EOSE', name] }),
      onclose: ([{ reason }]) => say({ received: ['CLOSED', name, reason] }),
      onauth: sign,
      maxWait: PATIENCE_MS,
    })
    subscriptions.set(name, closer)
    return { subscribed: name }
  },
  unsubscribe: async name => {
    await subscriptions.get(name).close()
    return { unsubscribed: name }
  },
}

await connection()
say({ ready: pubkey })
for await (const line of createInterface({ input: process.stdin })) {
  const [[command, wanted]] = Object.entries(JSON.parse(line))
  try {
    say(await commands[command](wanted))
  } catch (error) {
    say({ failed: error?.message ?? String(error) })
  }
}
pool.destroy()
process.exit(0)
