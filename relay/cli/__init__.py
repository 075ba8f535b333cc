"""The `relay` command: one file per command, put together in main.py."""
