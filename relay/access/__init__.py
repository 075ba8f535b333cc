"""Who may do what: identities, credentials, scopes, and the caches of channels and memberships.

Decides, and remembers for a few seconds what the store said. What is refused, and with which words, is for the door
that was knocked at: the WebSocket and HTTP have different texts for the same no.
"""
