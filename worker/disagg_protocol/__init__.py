"""The worker's side of the token-level protocol (docs/protocol.md): bodies, events, tickets and the
HTTP server.

The bundled worker and the adapters of other engines serve it with the same code.
"""
