"""The scaling policies: from an observation to the number of workers in each pool."""
