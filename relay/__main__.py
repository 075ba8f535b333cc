"""`python -m relay` serves; with arguments it is the `relay` command."""

from __future__ import annotations

import sys

from relay.cli.main import main

if __name__ == "__main__":
    main(sys.argv[1:] or ["serve"])
