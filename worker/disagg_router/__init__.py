"""The front door: OpenAI API, tokenizer, admission queue, pair choice, failover, streaming.

No torch, no worker code.
"""
