"""The way of an event: admit, authorise, commit, effects, dispatch.

`pipeline.Ingest` is the door that WebSocket and HTTP share. Admission runs in the caller's task and reads only caches
where it can; every commit runs in a task of the root nursery (`commit.py`, `effects.py`), so that no client can cancel
the stretch between COMMIT and dispatch. What has to leave goes to the fan-out and audit channels.
"""
