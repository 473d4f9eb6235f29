"""The Llama family in torch: configuration, weights and forward pass.

It turns tokens into logits and knows neither text nor scheduling.
"""
