"""PURE: The TCP ports on which the processes listen when nothing else is set."""

WORKER_PORT = 8000
KV_PORT = 9000
ROUTER_PORT = 8080
OPERATOR_HEALTH_PORT = 8081

# An engine that runs beside an adapter: its HTTP interface, and the ports over which engines agree
# on a hand-over (vLLM's side channel, SGLang's bootstrap server).
ENGINE_PORT = 8100
SIDE_CHANNEL_PORT = 5600
BOOTSTRAP_PORT = 8998
