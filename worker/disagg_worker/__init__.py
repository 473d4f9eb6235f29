"""The inference worker: the engine, the KV transfer and the HTTP server.

It never imports kopf, kubernetes, the operator or the router.
"""
