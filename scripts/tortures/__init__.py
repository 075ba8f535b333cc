"""What `scripts/torture` is made of: a relay to be killed, load for it, and the questions asked afterwards."""
