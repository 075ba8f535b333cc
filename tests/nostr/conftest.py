"""Hypothesis for this folder: no deadline per example (cores are shared), and the seed of a failure in the output."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("nostr", deadline=None, print_blob=True)
settings.load_profile("nostr")
