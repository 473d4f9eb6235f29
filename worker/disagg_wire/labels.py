"""PURE: The Kubernetes labels by which the objects of a deployment are found."""

LABEL_DEPLOYMENT = "disagg.dev/deployment"
LABEL_POOL = "disagg.dev/pool"
LABEL_REVISION = "disagg.dev/revision"
# On the Services of the pools, while a canary is tried: disagg_wire.canary has its value.
LABEL_CANARY = "disagg.dev/canary"
LABEL_COMPONENT = "app.kubernetes.io/component"

# The value of LABEL_COMPONENT on routers; workers carry their role.
ROUTER = "router"
