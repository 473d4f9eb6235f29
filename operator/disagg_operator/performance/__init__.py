"""The performance model: how fast a worker is, by the hardware, by the model and by measurement."""
