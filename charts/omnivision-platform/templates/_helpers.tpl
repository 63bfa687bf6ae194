{{/*
Names, labels, and everything that depends on the cloud.

Helpers below "Components" take a dictionary:
  root    the top-level context
  name    "worker" or "ui"
  key     where its values are: "aiWorker" or "ui"
  values  these values
*/}}

{{/* The prefix of all names. Short enough for a Rollout's Pods: theirs is
<prefix>-worker-<hash>-<5 characters>, and must stay a label's value. */}}
{{- define "omnivision.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 36 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 36 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 36 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "omnivision.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "omnivision.labels" -}}
{{ include "omnivision.selectorLabels" . }}
app.kubernetes.io/part-of: omnivision
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .Values.global.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Components */}}

{{- define "omnivision.component.name" -}}
{{ include "omnivision.fullname" .root }}-{{ .name }}
{{- end -}}

{{- define "omnivision.component.selectorLabels" -}}
{{ include "omnivision.selectorLabels" .root }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{- define "omnivision.component.labels" -}}
{{ include "omnivision.labels" .root }}
app.kubernetes.io/component: {{ .name }}
{{- end -}}

{{/* registry/image:tag@digest (P3) */}}
{{- define "omnivision.component.image" -}}
{{- printf "%s/%s:%s" (.root.Values.global.imageRegistry | trimSuffix "/") .values.image .values.tag -}}
{{- with .values.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "omnivision.component.serviceAccountName" -}}
{{ default (include "omnivision.component.name" .) .values.serviceAccount.name }}
{{- end -}}

{{- define "omnivision.component.priorityClassName" -}}
{{- if or .values.priorityClass.create .values.priorityClass.name -}}
{{ default (include "omnivision.component.name" .) .values.priorityClass.name }}
{{- end -}}
{{- end -}}

{{/* Pods that share requests with a canary when it begins: the fewest there can be. */}}
{{- define "omnivision.component.replicas" -}}
{{ ternary .values.hpa.minReplicas .values.replicas .values.hpa.enabled | int }}
{{- end -}}

{{/* The workers behind Traefik's internal entry point. */}}
{{- define "omnivision.worker.routedURL" -}}
http://{{ include "omnivision.component.name" (dict "root" . "name" "worker") }}-routed:{{ .Values.global.traefik.internalPort | int }}
{{- end -}}

{{- define "omnivision.workerURL" -}}
{{- if .Values.ui.workerURL -}}
{{ .Values.ui.workerURL }}
{{- else if eq .Values.aiWorker.canary.trafficRouting "traefik" -}}
{{ include "omnivision.worker.routedURL" . }}
{{- else -}}
http://{{ include "omnivision.component.name" (dict "root" . "name" "worker") }}:8080
{{- end -}}
{{- end -}}

{{/* Clouds. A new cloud is one more branch in each of these, and its name in
values.schema.json. */}}

{{/* Keeps GPU work on GPU nodes. */}}
{{- define "omnivision.cloud.nodeAffinity" -}}
{{- $node := index .values.nodeAffinity .root.Values.global.cloudProvider -}}
requiredDuringSchedulingIgnoredDuringExecution:
  nodeSelectorTerms:
    - matchExpressions:
        - key: {{ $node.key }}
          operator: In
          values: {{ toJson $node.values }}
{{- end -}}

{{/* Whom the cloud takes a Pod for. Empty when it is nobody. */}}
{{- define "omnivision.cloud.identityAnnotations" -}}
{{- if eq .root.Values.global.cloudProvider "aws" -}}
{{- with .values.serviceAccount.awsRoleARN }}
eks.amazonaws.com/role-arn: {{ . }}
eks.amazonaws.com/sts-regional-endpoints: "true"
{{- end }}
{{- else -}}
{{- with .values.serviceAccount.gcpServiceAccount }}
iam.gke.io/gcp-service-account: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What a Pod has to reach to get the cloud's credentials: STS on aws, the
metadata server of the node on gcp. Empty when it has no identity. */}}
{{- define "omnivision.cloud.identityEgress" -}}
{{- if include "omnivision.cloud.identityAnnotations" . -}}
{{- if eq .root.Values.global.cloudProvider "aws" -}}
- to:
    - ipBlock: {cidr: 0.0.0.0/0}
  ports:
    - {protocol: TCP, port: 443}
{{- else -}}
- to:
    - ipBlock: {cidr: 169.254.169.252/32}
  ports:
    - {protocol: TCP, port: 988}
- to:
    - ipBlock: {cidr: 169.254.169.254/32}
  ports:
    - {protocol: TCP, port: 80}
{{- end }}
{{- end }}
{{- end -}}

{{- define "omnivision.cloud.storageClassName" -}}
{{ default (ternary "gp3" "premium-rwo" (eq .root.Values.global.cloudProvider "aws")) .values.cache.storageClassName }}
{{- end -}}
