"""What is kept: numbered migrations and one module per thing.

Every function takes a `Connection` or a `Pool` of `relay.asyncpg_trio` first and runs one statement unless its
docstring says otherwise; transactions are opened by the callers in `relay/ingest`, which know what belongs together.
Keys and ids are hexadecimal text outside and `bytea` inside; channel ids are canonical UUID text.
"""
