"""From filters and a caller's access to stored rows, a number or ranked hits: what REQ, COUNT and HTTP share.

    conditions   a filter and an access as conditions of SQL
    sql          one page of a filter as one statement
    replay       the stored events of a subscription, as of one snapshot
    gather       the stored events of some filters as one list, bounded in bytes
    count        how many events match
    search       what contains words: `words` cuts what was typed, `terms` makes conditions and a rank of it

Nothing here is remembered between two calls, and nothing asks who the caller is.
"""
