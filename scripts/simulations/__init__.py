"""What `scripts/simulate` is made of: a PostgreSQL in memory, the relay's real parts on it, faults, and a judge."""
