{{/* Objects that the worker and the UI both have. Each file of worker/ and ui/
is one of these. */}}

{{/* Argo Rollouts narrows the stable and the canary Service to their revision
by adding a label to the selector; .role is "", "stable" or "canary". */}}
{{- define "omnivision.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "omnivision.component.name" . }}{{ with .role }}-{{ . }}{{ end }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "omnivision.component.labels" . | nindent 4 }}
spec:
  selector:
    {{- include "omnivision.component.selectorLabels" . | nindent 4 }}
  ports:
    - {name: http, port: 8080, targetPort: http}
{{- end -}}

{{- define "omnivision.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "omnivision.component.serviceAccountName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "omnivision.component.labels" . | nindent 4 }}
  {{- $identity := include "omnivision.cloud.identityAnnotations" . | trim }}
  {{- if or $identity .values.serviceAccount.annotations }}
  annotations:
    {{- with $identity }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .values.serviceAccount.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}

{{- define "omnivision.podDisruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "omnivision.component.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "omnivision.component.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ toJson .values.pdb.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "omnivision.component.selectorLabels" . | nindent 6 }}
  # A Pod that is not ready protects nobody, and must not block a node's drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
{{- end -}}

{{- define "omnivision.horizontalPodAutoscaler" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "omnivision.component.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "omnivision.component.labels" . | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: argoproj.io/v1alpha1
    kind: Rollout
    name: {{ include "omnivision.component.name" . }}
  minReplicas: {{ .values.hpa.minReplicas | int }}
  maxReplicas: {{ .values.hpa.maxReplicas | int }}
  metrics:
    {{- if .values.hpa.metrics }}
    {{- toYaml .values.hpa.metrics | nindent 4 }}
    {{- else }}
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ .values.hpa.targetCPUUtilizationPercentage | int }}
    {{- end }}
  {{- with .values.hpa.behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "omnivision.priorityClass" -}}
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata:
  name: {{ include "omnivision.component.priorityClassName" . }}
  labels:
    {{- include "omnivision.component.labels" . | nindent 4 }}
value: {{ .values.priorityClass.value | int }}
preemptionPolicy: {{ .values.priorityClass.preemptionPolicy }}
description: The {{ .name }} of {{ .root.Release.Name }}
{{- end -}}

{{/* The two revisions with their shares, which Argo Rollouts writes. */}}
{{- define "omnivision.traefikService" -}}
{{- $name := include "omnivision.component.name" . -}}
apiVersion: traefik.io/v1alpha1
kind: TraefikService
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "omnivision.component.labels" . | nindent 4 }}
spec:
  weighted:
    services:
      - {name: {{ $name }}-stable, port: http, weight: 100}
      - {name: {{ $name }}-canary, port: http, weight: 0}
{{- end -}}

{{/* How Argo Rollouts shifts requests. It finds the objects by these names. */}}
{{- define "omnivision.trafficRouting" -}}
{{- $name := include "omnivision.component.name" . -}}
{{- if eq .values.canary.trafficRouting "traefik" -}}
traefik:
  weightedTraefikServiceName: {{ $name }}
{{- else if eq .values.canary.trafficRouting "alb" -}}
alb:
  ingress: {{ $name }}
  rootService: {{ $name }}
  servicePort: 8080
{{- else if eq .values.canary.trafficRouting "gatewayAPI" -}}
plugins:
  argoproj-labs/gatewayAPI:
    httpRoute: {{ $name }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}
{{- end -}}

{{/* Where an IngressRoute leads: to both revisions by weight, or to all Pods. */}}
{{- define "omnivision.routeTarget" -}}
{{- if eq .values.canary.trafficRouting "traefik" -}}
- {kind: TraefikService, name: {{ include "omnivision.component.name" . }}}
{{- else -}}
- {kind: Service, name: {{ include "omnivision.component.name" . }}, port: http}
{{- end -}}
{{- end -}}

{{/* An HTTPRoute to both revisions by weight, which Argo Rollouts' plugin
writes, or to all Pods. .route has gateway, host, path and annotations. */}}
{{- define "omnivision.httpRoute" -}}
{{- $name := include "omnivision.component.name" . -}}
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "omnivision.component.labels" . | nindent 4 }}
  {{- with .route.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  parentRefs:
    - name: {{ .route.gateway.name }}
      namespace: {{ default .root.Release.Namespace .route.gateway.namespace }}
      {{- with .route.gateway.sectionName }}
      sectionName: {{ . }}
      {{- end }}
  {{- with .route.host }}
  hostnames: [{{ . | quote }}]
  {{- end }}
  rules:
    - matches:
        - path: {type: PathPrefix, value: {{ .route.path }}}
      backendRefs:
        {{- if eq .values.canary.trafficRouting "gatewayAPI" }}
        - {name: {{ $name }}-stable, port: 8080, weight: 100}
        - {name: {{ $name }}-canary, port: 8080, weight: 0}
        {{- else }}
        - {name: {{ $name }}, port: 8080}
        {{- end }}
{{- end -}}

{{/* An Ingress to all Pods; with an ALB, to both revisions by the weights in
the annotation that Argo Rollouts writes. .route has className, host, path,
annotations and tlsSecretName. */}}
{{- define "omnivision.ingress" -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ include "omnivision.component.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "omnivision.component.labels" . | nindent 4 }}
  {{- with .route.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  ingressClassName: {{ .route.className }}
  rules:
    - {{ with .route.host }}host: {{ . | quote }}
      {{ end }}http:
        paths:
          - path: {{ .route.path }}
            pathType: Prefix
            backend:
              service:
                name: {{ include "omnivision.component.name" . }}
                port: {name: {{ ternary "use-annotation" "http" (eq .values.canary.trafficRouting "alb") }}}
  {{- with .route.tlsSecretName }}
  tls:
    - secretName: {{ . }}
      {{- with $.route.host }}
      hosts: [{{ . | quote }}]
      {{- end }}
  {{- end }}
{{- end -}}

{{/* Pods of a namespace, for NetworkPolicies. */}}
{{- define "omnivision.peer.namespace" -}}
namespaceSelector:
  matchLabels:
    kubernetes.io/metadata.name: {{ . }}
{{- end -}}

{{- define "omnivision.peer.component" -}}
podSelector:
  matchLabels:
    {{- include "omnivision.component.selectorLabels" . | nindent 4 }}
{{- end -}}
