"""The front door: OpenAI API, tokenizer, admission queue, pair choice, failover and streaming.

It contains no torch and no worker code.
"""
