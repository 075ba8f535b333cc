"""A self-hosted Nostr relay for teams of people and agents.

The version is that of the package; NIP-11, `/_status` and the metrics' build information all read it from here.
"""

__version__ = "0.1.0"
