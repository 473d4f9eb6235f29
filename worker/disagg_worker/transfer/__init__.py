"""The KV transfer between a prefill and a decode worker: tickets, frames, the TCP sender and
listener (docs/protocol.md).
"""
