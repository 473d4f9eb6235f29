"""The inference engine: block pool, schedulers, sampler and the loop that drives the model."""
