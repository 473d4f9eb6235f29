"""The inference worker: engine, KV transfer and its HTTP door.

Never imports kopf, kubernetes, the operator or the router.
"""
