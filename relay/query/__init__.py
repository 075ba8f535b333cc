"""From filters and a caller's access to stored rows: what REQ and the HTTP reads share."""
