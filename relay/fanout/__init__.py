"""From a stored event to the sockets that may see it: which subscriptions match, and how a frame leaves."""
