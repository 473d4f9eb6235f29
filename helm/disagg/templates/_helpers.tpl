{{- define "disagg.name" -}}
{{- printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "disagg.selector" -}}
app.kubernetes.io/name: disagg-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "disagg.labels" -}}
{{ include "disagg.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* The namespaces to watch, separated by commas; empty if all of them are watched. */}}
{{- define "disagg.watched" -}}
{{- $named := .Values.watchNamespaces -}}
{{- with .Values.watchNamespace }}{{ $named = append $named . }}{{ end -}}
{{- $named | uniq | join "," -}}
{{- end -}}

{{/* What it takes to read the pools of DisaggScalers, and to scale them. */}}
{{- define "disagg.scalerRules" -}}
- apiGroups: [disagg.dev]
  resources: [disaggscalers]
  verbs: [get, list]
- apiGroups: [disagg.dev]
  resources: [disaggscalers/status]
  verbs: [get, patch]
{{- range .Values.scaler.targets }}
- apiGroups: {{ toJson .apiGroups }}
  resources: {{ toJson .resources }}
  verbs: [get]
- apiGroups: {{ toJson .apiGroups }}
  resources:
  {{- range .resources }}
  - {{ . }}/scale
  {{- end }}
  verbs: [get, patch]
{{- end }}
# Does somebody else scale a target?
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list]
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [list]
{{- if .Values.scalerOnly }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
# The credentials of a Prometheus that a DisaggScaler names. Never listed.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
# What the policy has learned, and the CA of a Prometheus. Never listed.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}
{{- end -}}

{{/* What the operator does in the namespaces that it watches. Nothing is granted that it does not use. */}}
{{- define "disagg.namespacedRules" -}}
{{ include "disagg.scalerRules" . }}
{{- if not .Values.scalerOnly }}
- apiGroups: [disagg.dev]
  resources: [disaggdeployments]
  verbs: [get, list, watch]
- apiGroups: [disagg.dev]
  resources: [disaggdeployments/status, disaggpools/status]
  verbs: [get, patch]
- apiGroups: [disagg.dev]
  resources: [disaggpools]
  verbs: [get, list, watch, create, patch, delete]
# Owner references with blockOwnerDeletion.
- apiGroups: [disagg.dev]
  resources: [disaggdeployments/finalizers, disaggpools/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# The revisions of the workers' pods: history, undo, and what failed.
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
# Which one takes a pod that moves between the pools.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
# The key of routers and workers, made once; what a resource names, read. Never listed, so none is read that isn't named.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
# What a scaling policy has learned, the specs that were accepted last; what a resource names, read. Never listed.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
# Does the claim of a model exist?
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# What the kubelet says of a pod that it can't start.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
# Held, because the routers' Role grants it.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
# The templates of device claims that resources refer to.
- apiGroups: [resource.k8s.io]
  resources: [resourceclaimtemplates]
  verbs: [get]
- apiGroups: [k8s.cni.cncf.io]
  resources: [network-attachment-definitions]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- end -}}
