"""The adapter: a small process in front of an unmodified vLLM, SGLang or LMDeploy.

It speaks the token-level protocol (docs/protocol.md) to routers and HTTP to the engine beside it.
"""
