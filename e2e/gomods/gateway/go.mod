module disagg.dev/e2e/gateway

go 1.26.8

require sigs.k8s.io/gateway-api v1.6.3
