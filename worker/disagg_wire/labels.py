"""PURE: The Kubernetes labels by which the objects of a deployment are found."""

LABEL_DEPLOYMENT = "disagg.dev/deployment"
LABEL_POOL = "disagg.dev/pool"
LABEL_REVISION = "disagg.dev/revision"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_SERVICE = "kubernetes.io/service-name"

# The value of LABEL_COMPONENT on routers; workers carry their role.
ROUTER = "router"
