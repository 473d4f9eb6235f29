"""From signals to replicas: `signals` are the doors, `policy` decides (PURE), `loop` ties them together."""
