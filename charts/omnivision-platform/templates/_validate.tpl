{{/*
What values.schema.json cannot say: rules over several keys, and arithmetic.
Every message names the key and the fix; all of them are given at once.
*/}}

{{- define "omnivision.validate" -}}
{{- $problems := list -}}
{{- range $c := list
      (dict "root" $ "name" "worker" "key" "aiWorker" "values" .Values.aiWorker)
      (dict "root" $ "name" "ui" "key" "ui" "values" .Values.ui) -}}
{{- if $c.values.enabled -}}
{{- $problems = concat $problems (include "omnivision.validate.component" $c | fromJsonArray) -}}
{{- end -}}
{{- end -}}
{{- if .Values.aiWorker.enabled -}}
{{- $problems = concat $problems (include "omnivision.validate.workerRoute" . | fromJsonArray) -}}
{{- end -}}
{{- if .Values.ui.enabled -}}
{{- $problems = concat $problems (include "omnivision.validate.ui" . | fromJsonArray) -}}
{{- end -}}
{{- if and .Values.aiWorker.enabled (has "gpu-health-check" .Values.aiWorker.canary.analysis.templates) (not .Values.gpuHealthCheck.enabled) -}}
{{- $problems = append $problems "aiWorker.canary.analysis.templates names gpu-health-check, which gpuHealthCheck.enabled: false leaves out: the Rollout would be invalid. Set gpuHealthCheck.enabled: true or take it out of the list" -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n%d problem(s) in the values:\n  - %s\n" (len $problems) (join "\n  - " $problems)) -}}
{{- end -}}
{{- end -}}

{{/* A JSON list of problems. */}}
{{- define "omnivision.validate.component" -}}
{{- $key := .key -}}{{- $v := .values -}}{{- $c := . -}}
{{- $problems := list -}}
{{- if not $v.tag -}}
{{- $problems = append $problems (printf "%s.tag is empty: set the version of %s to run, such as \"0.1.0\"" $key $v.image) -}}
{{- end -}}
{{- if and .root.Values.global.requireDigest (not $v.digest) -}}
{{- $problems = append $problems (printf "%s.digest is empty: set the sha256:… that `crane digest %s/%s:%s` prints, for a tag can move (P3), or set global.requireDigest: false on a developer's own cluster" $key .root.Values.global.imageRegistry $v.image (default "TAG" $v.tag)) -}}
{{- end -}}
{{- $replicas := include "omnivision.component.replicas" . | int -}}
{{- $replicasKey := ternary (printf "%s.hpa.minReplicas" $key) (printf "%s.replicas" $key) $v.hpa.enabled -}}
{{- $routed := include "omnivision.component.routed" . -}}
{{- if and (not $routed) (regexMatch "^0%?$" (toString $v.canary.maxSurge)) (regexMatch "^0%?$" (toString $v.canary.maxUnavailable)) -}}
{{- $problems = append $problems (printf "%s.canary.maxSurge and %s.canary.maxUnavailable are both 0: no Pod could ever be replaced. Set maxUnavailable: 1 where Pods are scarce, or maxSurge: 1 where there is room for one more" $key $key) -}}
{{- end -}}
{{- if and (eq $v.canary.trafficRouting "alb") (ne .root.Values.global.cloudProvider "aws") -}}
{{- $problems = append $problems (printf "%s.canary.trafficRouting alb is a load balancer of aws: use traefik, or gatewayAPI" $key) -}}
{{- end -}}
{{- $largest := 0 -}}
{{- range $i, $step := $v.canary.steps -}}
{{- if hasKey $step "setWeight" -}}
{{- $weight := int $step.setWeight -}}
{{- $largest = max $largest $weight | int -}}
{{- if and (not $routed) (gt $weight 0) (hasPrefix "0/" (include "omnivision.component.canaryPods" (dict "component" $c "weight" $weight))) -}}
{{- $fix := printf "%s: 2" $replicasKey -}}
{{- if gt $replicas 1 -}}{{- $fix = printf "setWeight: %d" (sub $weight 1) -}}{{- end -}}
{{- $problems = append $problems (printf "%s.canary.steps[%d].setWeight %d of %d replica(s) with maxSurge %v is no Pod at all: the canary would pass without having run (P11). Set %s.canary.maxSurge: 1 if there is room for one more Pod, or %s" $key $i $weight $replicas $v.canary.maxSurge $key $fix) -}}
{{- end -}}
{{- end -}}
{{- if and (hasKey $step "setCanaryScale") (not $routed) -}}
{{- $problems = append $problems (printf "%s.canary.steps[%d].setCanaryScale works with traffic routing only: use setWeight, or set %s.canary.trafficRouting" $key $i $key) -}}
{{- end -}}
{{- end -}}
{{- if $routed -}}
{{- range include "omnivision.component.weightSteps" $c | fromJsonArray -}}
{{- if and (gt (int .weight) 0) (hasPrefix "0/" .pods) -}}
{{- $problems = append $problems (printf "%s.canary.steps[%d] leaves the canary no Pod for its %d%% of requests: Argo Rollouts would send them none, and the canary would pass without having run (P11). Set setCanaryScale: {replicas: 1}, or {matchTrafficWeight: true}" $key (int .index) (int .weight)) -}}
{{- end -}}
{{- end -}}
{{- if and $v.canary.dynamicStableScale (include "omnivision.component.scales" $c) -}}
{{- $problems = append $problems (printf "%s.canary.dynamicStableScale shrinks the stable version by setWeight, whatever setCanaryScale makes of the canary: its requests would overrun too few Pods. Take the setCanaryScale steps out, or dynamicStableScale: false" $key) -}}
{{- end -}}
{{- end -}}
{{- if eq $largest 0 -}}
{{- $problems = append $problems (printf "%s.canary.steps never set a weight above 0: there would be no canary Pod (P11). Begin with `- setWeight: 5`" $key) -}}
{{- end -}}
{{- if and $v.hpa.enabled (gt (int $v.hpa.minReplicas) (int $v.hpa.maxReplicas)) -}}
{{- $problems = append $problems (printf "%s.hpa.minReplicas (%d) is above %s.hpa.maxReplicas (%d): raise maxReplicas" $key (int $v.hpa.minReplicas) $key (int $v.hpa.maxReplicas)) -}}
{{- end -}}
{{- if lt (int $v.revisionHistoryLimit) (int $v.rollbackWindow) -}}
{{- $problems = append $problems (printf "%s.revisionHistoryLimit (%d) is below %s.rollbackWindow (%d): the revisions to go back to would be gone (P21). Raise revisionHistoryLimit" $key (int $v.revisionHistoryLimit) $key (int $v.rollbackWindow)) -}}
{{- end -}}
{{- if le (int $v.progressDeadlineSeconds) (int $v.minReadySeconds) -}}
{{- $problems = append $problems (printf "%s.progressDeadlineSeconds (%d) must be above %s.minReadySeconds (%d): no Pod could be ready in time. Raise it" $key (int $v.progressDeadlineSeconds) $key (int $v.minReadySeconds)) -}}
{{- end -}}
{{- if and $v.pdb.enabled (regexMatch "^0%?$" (toString $v.pdb.maxUnavailable)) -}}
{{- $problems = append $problems (printf "%s.pdb.maxUnavailable is 0: no node with such a Pod could ever be drained. Set it to 1, or %s.pdb.enabled: false" $key $key) -}}
{{- end -}}
{{- toJson $problems -}}
{{- end -}}

{{/* Not empty if a step makes the canary smaller or larger than its weight. */}}
{{- define "omnivision.component.scales" -}}
{{- range .values.canary.steps -}}
{{- if and (hasKey . "setCanaryScale") (not (hasKey (default dict .setCanaryScale) "matchTrafficWeight")) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* A JSON list: what an ALB or a Gateway in front of the workers asks for. */}}
{{- define "omnivision.validate.workerRoute" -}}
{{- $worker := .Values.aiWorker -}}
{{- $router := $worker.canary.trafficRouting -}}
{{- $problems := list -}}
{{- if and (eq $router "gatewayAPI") (not $worker.route.gateway.name) -}}
{{- $problems = append $problems "aiWorker.route.gateway.name is empty: name the Gateway, one inside the cluster, that leads to the workers" -}}
{{- end -}}
{{- if has $router (list "alb" "gatewayAPI") -}}
{{- if and .Values.ui.enabled (not .Values.ui.workerURL) -}}
{{- $problems = append $problems (printf "ui.workerURL is empty: with aiWorker.canary.trafficRouting %s the UI reaches the workers by the router's address, or the canary would get none of its requests. Set it, such as http://workers.internal.example.com" $router) -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not $worker.networkPolicy.extraIngress) -}}
{{- $problems = append $problems (printf "aiWorker.networkPolicy.extraIngress is empty: the network policy would not let the %s through to the workers. Add a rule with its addresses or Pods, for port http" (ternary "ALB" "Gateway" (eq $router "alb"))) -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end -}}

{{- define "omnivision.validate.ui" -}}
{{- $ui := .Values.ui -}}
{{- $problems := list -}}
{{- $holds := dict "traefik" (list "IngressRoute" "None") "alb" (list "Ingress") "gatewayAPI" (list "HTTPRoute") -}}
{{- $router := $ui.canary.trafficRouting -}}
{{- if and (hasKey $holds $router) (not (has $ui.expose.type (index $holds $router))) -}}
{{- $problems = append $problems (printf "ui.canary.trafficRouting %s cannot shift the requests of ui.expose.type %s: set ui.expose.type: %s, or trafficRouting: none" $router $ui.expose.type (index $holds $router | first)) -}}
{{- end -}}
{{- if and (not .Values.aiWorker.enabled) (not $ui.workerURL) -}}
{{- $problems = append $problems "ui.workerURL is empty and aiWorker.enabled is false: the UI would have no worker. Set ui.workerURL to the workers' address" -}}
{{- end -}}
{{- if and $ui.workerURL .Values.networkPolicy.enabled (not $ui.networkPolicy.extraEgress) -}}
{{- $problems = append $problems "ui.workerURL leads out of this release and ui.networkPolicy.extraEgress is empty: the network policy would not let the UI through. Add an egress rule for that address" -}}
{{- end -}}
{{- if and (eq $ui.expose.type "HTTPRoute") (not $ui.expose.gateway.name) -}}
{{- $problems = append $problems "ui.expose.gateway.name is empty: name the Gateway that the HTTPRoute attaches to" -}}
{{- end -}}
{{- toJson $problems -}}
{{- end -}}
