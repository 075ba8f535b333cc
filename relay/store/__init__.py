"""What is kept: numbered migrations and one module per thing.

Every function takes a `Connection` or a `Pool` of `relay.asyncpg_trio` first and runs one statement unless its
docstring says otherwise; transactions are opened by the callers in `relay/ingest`, which know what belongs together.
A module with the plural of a thing (`channels`, `threads`) writes and finds it; `<thing>_list` and `<thing>_details`
are what HTTP shows of it, one statement a page. `reach` is the access check as a part of those statements, `places`
where a page ends. Keys and ids are hexadecimal text outside and `bytea` inside; channel ids are canonical UUID text.
"""
