{{/*
The worker and the UI are rolled out alike; what differs is in their values and
in the Pod parts that worker/rollout.yaml and ui/rollout.yaml hand over:
  env      more variables, as YAML
  volumes  and mounts: more of these, as YAML
  affinity the whole affinity, as YAML
*/}}

{{- define "omnivision.rollout" -}}
{{- $root := .root -}}{{- $v := .values -}}
{{- $name := include "omnivision.component.name" . -}}
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "omnivision.component.labels" . | nindent 4 }}
  annotations:
    # What the canary's weights come to (P10).
    omnivision.ai/effective-weights: {{ include "omnivision.component.effectiveWeights" . | quote }}
    # The most Pods that a canary takes, the stable ones included (P15).
    omnivision.ai/canary-peak-pods: {{ include "omnivision.component.peakPods" . | quote }}
spec:
  {{- /* With an HPA the number is the HPA's: Git must not have an opinion (P9). */}}
  {{- if not $v.hpa.enabled }}
  replicas: {{ $v.replicas | int }}
  {{- end }}
  revisionHistoryLimit: {{ $v.revisionHistoryLimit | int }}
  rollbackWindow:
    revisions: {{ $v.rollbackWindow | int }}
  minReadySeconds: {{ $v.minReadySeconds | int }}
  progressDeadlineSeconds: {{ $v.progressDeadlineSeconds | int }}
  progressDeadlineAbort: {{ $v.progressDeadlineAbort }}
  selector:
    matchLabels:
      {{- include "omnivision.component.selectorLabels" . | nindent 6 }}
  strategy:
    canary:
      stableService: {{ $name }}-stable
      canaryService: {{ $name }}-canary
      {{- if include "omnivision.component.routed" . }}
      dynamicStableScale: {{ $v.canary.dynamicStableScale }}
      trafficRouting:
        {{- include "omnivision.trafficRouting" . | nindent 8 }}
      {{- else }}
      maxSurge: {{ toJson $v.canary.maxSurge }}
      maxUnavailable: {{ toJson $v.canary.maxUnavailable }}
      {{- end }}
      {{- with $v.canary.analysis.templates }}
      # In the background of the steps, so that the pauses are watched as well (P18).
      analysis:
        startingStep: {{ $v.canary.analysis.startingStep | int }}
        templates:
          {{- range . }}
          - templateName: {{ . }}
          {{- end }}
        args:
          - name: canary-hash
            valueFrom:
              podTemplateHashValue: Latest
          - name: stable-hash
            valueFrom:
              podTemplateHashValue: Stable
      {{- end }}
      steps:
        {{- toYaml $v.canary.steps | nindent 8 }}
  template:
    metadata:
      labels:
        {{- include "omnivision.component.selectorLabels" . | nindent 8 }}
        {{- with $v.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: {{ .name }}
        prometheus.io/scrape: "true"
        prometheus.io/port: "9090"
        prometheus.io/path: /metrics
        {{- with $v.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "omnivision.component.serviceAccountName" . }}
      # Nothing here calls the Kubernetes API. Cloud identity brings its own token.
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with $root.Values.global.imagePullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      {{- with include "omnivision.component.priorityClassName" . }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $v.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      # The program itself waits and drains after SIGTERM; a preStop hook would wait twice.
      terminationGracePeriodSeconds: {{ add $v.drain.delaySeconds $v.drain.timeoutSeconds $v.drain.marginSeconds }}
      securityContext:
        {{- include "omnivision.podSecurityContext" . | nindent 8 }}
      {{- with .affinity }}
      affinity:
        {{- . | nindent 8 }}
      {{- end }}
      {{- with $v.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $v.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $v.topologySpread.enabled }}
      topologySpreadConstraints:
        - topologyKey: topology.kubernetes.io/zone
          maxSkew: {{ $v.topologySpread.maxSkew | int }}
          whenUnsatisfiable: {{ $v.topologySpread.whenUnsatisfiable }}
          labelSelector:
            matchLabels:
              {{- include "omnivision.component.selectorLabels" . | nindent 14 }}
          # Each revision for itself: the stable one must not push the canary aside.
          matchLabelKeys: [rollouts-pod-template-hash]
      {{- end }}
      containers:
        - name: {{ .name }}
          image: {{ include "omnivision.component.image" . | quote }}
          imagePullPolicy: {{ $v.imagePullPolicy }}
          args:
            - --listen=:8080
            - --metrics-listen=:9090
            - --drain-delay={{ $v.drain.delaySeconds | int }}s
            - --drain-timeout={{ $v.drain.timeoutSeconds | int }}s
            {{- range $v.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          env:
            - name: OMNIVISION_CLUSTER
              value: {{ $root.Values.global.cluster | quote }}
            - name: OMNIVISION_REGION
              value: {{ $root.Values.global.region | quote }}
            - name: OMNIVISION_IMAGE_DIGEST
              value: {{ $v.digest | quote }}
            {{- with .env }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $v.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: http, containerPort: 8080}
            - {name: metrics, containerPort: 9090}
          startupProbe:
            httpGet: {path: /healthz, port: http}
            {{- toYaml $v.probes.startup | nindent 12 }}
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            {{- toYaml $v.probes.readiness | nindent 12 }}
          livenessProbe:
            httpGet: {path: /healthz, port: http}
            {{- toYaml $v.probes.liveness | nindent 12 }}
          resources:
            {{- toYaml $v.resources | nindent 12 }}
          securityContext:
            {{- include "omnivision.containerSecurityContext" . | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- with .mounts }}
            {{- . | nindent 12 }}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: 64Mi}
        {{- with .volumes }}
        {{- . | nindent 8 }}
        {{- end }}
{{- end -}}

{{/* Pod Security "restricted". */}}
{{- define "omnivision.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "omnivision.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
