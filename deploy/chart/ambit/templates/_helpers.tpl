{{- /* Labels of every object. Takes (dict "root" $ "app" NAME). */}}
{{- define "ambit.labels" -}}
app: {{ .app }}
app.kubernetes.io/name: {{ .app }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/part-of: ambit
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- /* An image. Takes (dict "root" $ "override" VALUE "name" NAME). */}}
{{- define "ambit.image" -}}
{{- if .override }}{{ .override }}{{ else -}}
{{ trimSuffix "/" .root.Values.hub }}/{{ .name }}:{{ default .root.Chart.AppVersion .root.Values.tag }}
{{- end }}
{{- end }}

{{- /* What every container says of its image. Takes the same. */}}
{{- define "ambit.pull" -}}
image: {{ include "ambit.image" . | quote }}
imagePullPolicy: {{ .root.Values.imagePullPolicy }}
{{- end }}

{{- /* Where pods may run. Takes (dict "root" $ "component" VALUES). */}}
{{- define "ambit.scheduling" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .component.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* A variable from the pod's own fields. Takes (dict "name" NAME "path" FIELD). */}}
{{- define "ambit.field" -}}
- name: {{ .name }}
  valueFrom:
    fieldRef:
      fieldPath: {{ .path }}
{{- end }}
