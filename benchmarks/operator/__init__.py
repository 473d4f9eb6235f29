"""The operator beside a bare loop that writes the same objects, on a real API server."""
