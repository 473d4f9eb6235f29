"""The HTTP server of the worker: its endpoints, its requests in progress, and its metrics."""
