"""`hypercorn -c hypercorn.toml relay.asgi:app`: what Hypercorn's Trio worker imports.

The import checks the configuration (all errors at once, exit code 2) and takes over the worker, see relay/launch.py.
"""

from __future__ import annotations

from relay import config, launch, logs
from relay.assembly import assemble
from relay.errors import ConfigError

try:
    settings = config.load()
except ConfigError as error:
    launch.refuse(f"the configuration is wrong:\n{error}")

logs.configure(settings.log_level, settings.log_format)
app = launch.OuterApp()
launch.take_over(settings, assemble, app)
