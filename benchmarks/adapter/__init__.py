"""What the adapter adds to each request and each token."""
