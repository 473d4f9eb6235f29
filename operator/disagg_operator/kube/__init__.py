"""Access to the Kubernetes API: the client, its errors and credentials, the cache, kinds and pods."""
