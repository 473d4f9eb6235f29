"""PURE: The TCP ports on which the processes listen when nothing else is set."""

WORKER_PORT = 8000
KV_PORT = 9000
ROUTER_PORT = 8080
OPERATOR_HEALTH_PORT = 8081
