"""The adapter as a worker: what it is, its jobs, hand-overs, and its eye on the engine."""
