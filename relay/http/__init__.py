"""The HTTP door: one Quart app on the relay's port, and two small ones for health and metrics on ports of their own.

    services   what the routes work with, put together by the supervisor
    app        the app of the relay's port: limits, refusals, metrics by route, crashes
    edge       around it, in plain ASGI: CORS, and the last place where a crash can be contained
    auth       from a request to a `Caller`
    discovery, events, channels, dms    the routes
    health     the two small apps, and readiness

Routes decide nothing of their own: they parse, ask `access`, call `store` or `ingest`, and answer. Every write of
an event happens in a task of the root nursery; a client that goes away cancels only its own waiting.
"""
