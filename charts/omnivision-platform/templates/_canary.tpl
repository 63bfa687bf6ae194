{{/*
What a canary's weights come to. Without a traffic router Argo Rollouts turns
them into whole Pods (P10); the same arithmetic is done here, so that the
effective weight can be shown and a canary without a Pod refused (P11).
*/}}

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

{{/* One line for people: each weight and what it comes to. */}}
{{- define "omnivision.component.effectiveWeights" -}}
{{- $component := . -}}
{{- $words := list -}}
{{- range .values.canary.steps -}}
{{- if hasKey . "setWeight" -}}
{{- $weight := int .setWeight -}}
{{- if eq $component.values.canary.trafficRouting "none" -}}
{{- $pods := include "omnivision.component.canaryPods" (dict "component" $component "weight" $weight) | splitList "/" -}}
{{- $canary := index $pods 0 | int -}}{{- $all := index $pods 1 | int -}}
{{- $percent := div (add (mul $canary 200) $all) (mul 2 $all) -}}
{{- $words = append $words (printf "setWeight %d is %d of %d Pods (%d%%)" $weight $canary $all $percent) -}}
{{- else -}}
{{- $words = append $words (printf "setWeight %d is %d%% of requests" $weight $weight) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ join ", " $words }}
{{- end -}}
