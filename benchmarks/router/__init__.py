"""The router beside nginx as a plain reverse proxy, in front of the same simulated workers."""
