{{/*
What a canary's weights come to. Without a traffic router Argo Rollouts turns
them into whole Pods (P10), with one it brings Pods for the share of requests;
the same arithmetic is done here, so that both can be shown, and a canary
without a Pod refused (P11).
*/}}

{{/* Not empty if requests are shifted, and not Pods. */}}
{{- define "omnivision.component.routed" -}}
{{- if ne .values.canary.trafficRouting "none" -}}true{{- end -}}
{{- end -}}

{{/* A number or a percentage of .of, as a number. Surges round up. */}}
{{- define "omnivision.canary.surge" -}}
{{- $v := .value | toString -}}
{{- if hasSuffix "%" $v -}}
{{ div (add (mul (trimSuffix "%" $v | int) .of) 99) 100 }}
{{- else -}}
{{ int .value }}
{{- end -}}
{{- end -}}

{{/* "<canary Pods>/<all Pods>" for .weight of .replicas with .surge. Argo
Rollouts takes the whole numbers whose share is nearest to the weight. It may
add one Pod if it may surge, and both versions keep a Pod whenever there are
two. Of equally near ones it takes the larger canary; where that would leave no
stable Pod, such as 75 of 2 without surge, it takes none at all: a flaw of
v1.10.2, so such weights are refused. */}}
{{- define "omnivision.canary.pods" -}}
{{- $r := int .replicas -}}{{- $w := int .weight -}}{{- $surge := int .surge -}}
{{- $up := int (div (add (mul $r $w) 99) 100) -}}
{{- $down := int (div (mul $r $w) 100) -}}
{{- $mayBeNone := or (eq $w 0) (eq $w 100) (and (eq $r 1) (eq $surge 0)) -}}
{{- $choices := list -}}
{{- if or (lt $up $r) $mayBeNone -}}{{- $choices = append $choices (list $up $r) -}}{{- end -}}
{{- $mayBeLess := or (gt $down 0) $mayBeNone -}}
{{- $tied := eq (mod (mul $r $w) 100) 50 -}}
{{- if and $mayBeLess (not $tied) -}}{{- $choices = append $choices (list $down $r) -}}{{- end -}}
{{- if gt $surge 0 -}}
{{- $choices = append $choices (list $up (add1 $r)) -}}
{{- $tied = eq (mod (mul (add1 $r) $w) 100) 50 -}}
{{- if and $mayBeLess (not $tied) -}}{{- $choices = append $choices (list $down (add1 $r)) -}}{{- end -}}
{{- end -}}
{{- $best := list 0 $r -}}{{- $bestOff := -1 -}}{{- $bestOf := 1 -}}
{{- range $choices -}}
{{- $of := int (index . 1) -}}
{{- $off := int (sub (mul (index . 0) 100) (mul $w $of)) -}}
{{- if lt $off 0 -}}{{- $off = int (mul $off -1) -}}{{- end -}}
{{- if or (lt $bestOff 0) (lt (mul $off $bestOf) (mul $bestOff $of)) -}}
{{- $best = . -}}{{- $bestOff = $off -}}{{- $bestOf = $of -}}
{{- end -}}
{{- end -}}
{{ index $best 0 }}/{{ index $best 1 }}
{{- end -}}

{{/* The same for one of a component's weights. */}}
{{- define "omnivision.component.canaryPods" -}}
{{- $replicas := include "omnivision.component.replicas" .component | int -}}
{{- $surge := include "omnivision.canary.surge" (dict "value" .component.values.canary.maxSurge "of" $replicas) -}}
{{- include "omnivision.canary.pods" (dict "replicas" $replicas "weight" .weight "surge" $surge) -}}
{{- end -}}

{{/* "<canary Pods>/<all Pods>" while requests are shifted: Pods for .weight of
.component's replicas, rounded up, beside the stable ones. .scale is the step
setCanaryScale that holds, if any. */}}
{{- define "omnivision.component.routedPods" -}}
{{- $replicas := include "omnivision.component.replicas" .component | int -}}
{{- $scale := default dict .scale -}}
{{- $of := int .weight -}}
{{- if hasKey $scale "weight" -}}{{- $of = int $scale.weight -}}{{- end -}}
{{- $canary := int (div (add (mul $replicas $of) 99) 100) -}}
{{- if hasKey $scale "replicas" -}}{{- $canary = int $scale.replicas -}}{{- end -}}
{{- $stable := $replicas -}}
{{- if .component.values.canary.dynamicStableScale -}}
{{- $stable = int (div (add (mul $replicas (sub 100 (int .weight))) 99) 100) -}}
{{- end -}}
{{ $canary }}/{{ add $canary $stable }}
{{- end -}}

{{/* A JSON list of the steps that set a weight or a scale, each with the
weight that it sets, and "<canary Pods>/<all Pods>". */}}
{{- define "omnivision.component.weightSteps" -}}
{{- $component := . -}}
{{- $scale := dict -}}{{- $weight := 0 -}}
{{- $steps := list -}}
{{- range $i, $step := .values.canary.steps -}}
{{- if hasKey $step "setCanaryScale" -}}
{{- $scale = ternary dict $step.setCanaryScale (hasKey $step.setCanaryScale "matchTrafficWeight") -}}
{{- end -}}
{{- if hasKey $step "setWeight" -}}{{- $weight = int $step.setWeight -}}{{- end -}}
{{- if or (hasKey $step "setWeight") (hasKey $step "setCanaryScale") -}}
{{- $pods := "" -}}
{{- if include "omnivision.component.routed" $component -}}
{{- $pods = include "omnivision.component.routedPods" (dict "component" $component "weight" $weight "scale" $scale) -}}
{{- else -}}
{{- $pods = include "omnivision.component.canaryPods" (dict "component" $component "weight" $weight) -}}
{{- end -}}
{{- $steps = append $steps (dict "index" $i "weight" $weight "sets" (hasKey $step "setWeight") "pods" $pods) -}}
{{- end -}}
{{- end -}}
{{- toJson $steps -}}
{{- end -}}

{{/* The most Pods that there are at a time, from the first step to the
promotion. With a router the stable Pods stay until the canary has all requests. */}}
{{- define "omnivision.component.peakPods" -}}
{{- $replicas := include "omnivision.component.replicas" . | int -}}
{{- if not (include "omnivision.component.routed" .) -}}
{{ add $replicas (include "omnivision.canary.surge" (dict "value" .values.canary.maxSurge "of" $replicas) | int) }}
{{- else if not .values.canary.dynamicStableScale -}}
{{ mul 2 $replicas }}
{{- else -}}
{{- /* The canary's Pods come before the stable ones of the step before go. */ -}}
{{- $peak := $replicas -}}{{- $stable := $replicas -}}
{{- range concat (include "omnivision.component.weightSteps" . | fromJsonArray) (list (dict "pods" (printf "%d/%d" $replicas $replicas))) -}}
{{- $pods := splitList "/" .pods -}}
{{- $canary := index $pods 0 | int -}}
{{- $peak = max $peak (add $canary $stable) -}}
{{- $stable = sub (index $pods 1 | int) $canary -}}
{{- end -}}
{{ $peak }}
{{- end -}}
{{- end -}}

{{/* One line for people: each weight and what it comes to. */}}
{{- define "omnivision.component.effectiveWeights" -}}
{{- $routed := include "omnivision.component.routed" . -}}
{{- $words := list -}}
{{- range include "omnivision.component.weightSteps" . | fromJsonArray -}}
{{- if .sets -}}
{{- $weight := int .weight -}}
{{- $pods := splitList "/" .pods -}}
{{- $canary := index $pods 0 | int -}}{{- $all := index $pods 1 | int -}}
{{- if $routed -}}
{{- $words = append $words (printf "setWeight %d is %d%% of requests, by %d of %d Pods" $weight $weight $canary $all) -}}
{{- else -}}
{{- $percent := div (add (mul $canary 200) $all) (mul 2 $all) -}}
{{- $words = append $words (printf "setWeight %d is %d of %d Pods (%d%%)" $weight $canary $all $percent) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ join ", " $words }}
{{- end -}}
