"""WebSocket connections: from the accepted socket on the shared port to the session and back."""
