"""The `disagg` command, also installed as `kubectl-disagg`."""
