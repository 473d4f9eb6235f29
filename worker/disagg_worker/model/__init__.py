"""The Llama family in torch: config, weights and forward pass.

Tokens in, logits out; it knows neither text nor scheduling.
"""
