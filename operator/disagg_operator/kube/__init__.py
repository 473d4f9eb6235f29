"""Access to the Kubernetes API: the client, its errors and credentials, the cache and the kinds."""
