"""The HTTP door: one Quart app on the relay's port, and two small ones for health and metrics on ports of their own.

    services      what the routes work with, put together by the supervisor
    edge          around the app, in plain ASGI: CORS, what no route may see, the last place where a crash is contained
    app           the app of the relay's port: limits, refusals, metrics by route, crashes
    auth, signed  from a request to a `Caller`: the older routes, and those that a signed request may use (NIP-98)
    values        query strings, JSON bodies, times; `hex_values`: ids and cursors in hex
    refusals      every no and its envelope; `problems`: the same as problem details
    conditional   ETag and 304
    undecided     how long a request waits for the outcome of its write
    health        the two small apps; `readiness`: their answer and the relay's
    openapi/      what the routes promise, one module a resource

The routes, by their first segment behind `/api`:

    channels (with members and canvas), messages, threads, reactions, dms, agents
    events        one event in, or out by its id
    search, feed
    users, social (notes, contact lists), presence
    tokens        `minting`: what a request for one has to be
    bridge        `/query`, `/count`, `/events`: the verbs of a WebSocket, beside `/api`
    discovery     NIP-11 and NIP-05; `docs`: the OpenAPI document and its page

`message_rows` is how messages and threads show an event. Routes decide nothing of their own: they parse, ask `access`,
call `store`, `query` or `ingest`, and answer. Every write happens in a task of the root nursery; a client that goes
away cancels only its own waiting.
"""
