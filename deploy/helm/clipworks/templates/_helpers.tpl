{{- define "clipworks.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "clipworks.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "clipworks.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "clipworks.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "clipworks.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default (printf "%s-%s" .Chart.AppVersion .Values.flavour)) -}}
{{- end -}}

{{- define "clipworks.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "clipworks.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What cannot work is refused here, before anything is installed. */}}
{{- define "clipworks.check" -}}
{{- $many := or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) -}}
{{- if and $many (eq .Values.collections.backend "embedded") -}}
{{- fail "collections.backend=embedded keeps collections on a volume that one server owns: several replicas would not see each other's, or not start. Set replicaCount=1 and autoscaling.enabled=false, or collections.backend to milvus (shared by all replicas) or memory (kept by none)" -}}
{{- end -}}
{{- if and (eq .Values.collections.backend "milvus") (not .Values.collections.milvus.uri) -}}
{{- fail "collections.backend=milvus needs collections.milvus.uri, such as http://milvus:19530" -}}
{{- end -}}
{{- if and .Values.artifacts.persistence.readOnly (not .Values.artifacts.persistence.existingClaim) -}}
{{- fail "artifacts.persistence.readOnly needs artifacts.persistence.existingClaim: a new volume holds no model" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (eq .Values.autoscaling.kind "keda") (not .Values.autoscaling.keda.prometheusAddress) -}}
{{- fail "autoscaling.kind=keda needs autoscaling.keda.prometheusAddress, such as http://prometheus.monitoring:9090" -}}
{{- end -}}
{{- end -}}

{{- define "clipworks.pod" -}}
{{- $fromHub := hasPrefix "hub:" .Values.model -}}
metadata:
  labels:
    {{- include "clipworks.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "clipworks.fullname" . }}
  automountServiceAccountToken: false
  # A service called clipworks would put CLIPWORKS_PORT=tcp://... into the environment.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add .Values.drain.graceSeconds .Values.drain.seconds .Values.drain.stopSeconds 8 }}
  securityContext:
    {{- include "clipworks.podSecurityContext" . | nindent 4 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: clipworks
      image: {{ include "clipworks.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      ports:
        - name: http
          containerPort: 8000
          protocol: TCP
      env:
        - name: CLIPWORKS_HOST
          value: "0.0.0.0"
        - name: CLIPWORKS_PORT
          value: "8000"
        - name: CLIPWORKS_STORE
          value: /var/lib/clipworks/artifacts
        - name: CLIPWORKS_DATA
          value: {{ ternary "/var/lib/clipworks/collections" "memory" (eq .Values.collections.backend "embedded") }}
        - name: CLIPWORKS_DEVICE
          value: {{ .Values.flavour }}
        {{- with .Values.model }}
        - name: CLIPWORKS_MODEL
          value: {{ . | quote }}
        {{- end }}
        {{- if eq .Values.collections.backend "milvus" }}
        - name: CLIPWORKS_COLLECTIONS_BACKEND
          value: milvus
        - name: CLIPWORKS_MILVUS_URI
          value: {{ .Values.collections.milvus.uri | quote }}
        {{- with .Values.collections.milvus.database }}
        - name: CLIPWORKS_MILVUS_DATABASE
          value: {{ . | quote }}
        {{- end }}
        {{- if .Values.collections.milvus.existingSecret }}
        - name: CLIPWORKS_MILVUS_TOKEN
          valueFrom:
            secretKeyRef:
              name: {{ .Values.collections.milvus.existingSecret }}
              key: {{ .Values.collections.milvus.tokenKey }}
        {{- end }}
        {{- end }}
        {{- if .Values.photos.existingClaim }}
        - name: CLIPWORKS_MEDIA_ROOT
          value: /photos
        {{- end }}
        {{- if .Values.auth.existingSecret }}
        - name: CLIPWORKS_API_KEYS
          valueFrom:
            secretKeyRef:
              name: {{ .Values.auth.existingSecret }}
              key: {{ .Values.auth.apiKeysKey }}
        - name: CLIPWORKS_ADMIN_KEYS
          valueFrom:
            secretKeyRef:
              name: {{ .Values.auth.existingSecret }}
              key: {{ .Values.auth.adminKeysKey }}
              optional: true
        {{- end }}
        - name: CLIPWORKS_DRAIN_GRACE_S
          value: {{ .Values.drain.graceSeconds | quote }}
        - name: CLIPWORKS_DRAIN_S
          value: {{ .Values.drain.seconds | quote }}
        - name: CLIPWORKS_STOP_S
          value: {{ .Values.drain.stopSeconds | quote }}
        {{- range $name := list "INTRA_THREADS" "DECODE_WORKERS" "SEARCH_THREADS" }}
        {{- if not (hasKey $.Values.settings $name) }}
        - name: CLIPWORKS_{{ $name }}
          valueFrom:
            resourceFieldRef:
              containerName: clipworks
              resource: requests.cpu
              divisor: "1"
        {{- end }}
        {{- end }}
        {{- /* toJson: a large number of a values file is a float, of which quote alone makes 5.3e+08. */ -}}
        {{- range $name, $value := .Values.settings }}
        - name: CLIPWORKS_{{ $name }}
          value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      startupProbe:
        httpGet:
          path: /readyz
          port: http
        periodSeconds: {{ .Values.startupProbe.periodSeconds }}
        timeoutSeconds: 4
        failureThreshold: {{ .Values.startupProbe.failureThreshold | default (ternary 450 150 $fromHub) }}
      livenessProbe:
        httpGet:
          path: /livez
          port: http
        {{- toYaml .Values.livenessProbe | nindent 8 }}
      readinessProbe:
        httpGet:
          path: /readyz
          port: http
        {{- toYaml .Values.readinessProbe | nindent 8 }}
      resources:
        {{- $resources := deepCopy .Values.resources }}
        {{- if eq .Values.flavour "cuda" }}
        {{- $resources = mergeOverwrite (dict "limits" (dict "nvidia.com/gpu" 1)) $resources }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        {{- include "clipworks.securityContext" . | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        - name: artifacts
          mountPath: /var/lib/clipworks/artifacts
          {{- if .Values.artifacts.persistence.readOnly }}
          readOnly: true
          {{- end }}
        {{- if eq .Values.collections.backend "embedded" }}
        - name: collections
          mountPath: /var/lib/clipworks/collections
        {{- end }}
        {{- if .Values.photos.existingClaim }}
        - name: photos
          mountPath: /photos
          readOnly: true
        {{- end }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: 256Mi
    {{- if .Values.artifacts.persistence.existingClaim }}
    - name: artifacts
      persistentVolumeClaim:
        claimName: {{ .Values.artifacts.persistence.existingClaim }}
        {{- if .Values.artifacts.persistence.readOnly }}
        readOnly: true
        {{- end }}
    {{- else if ne .Values.collections.backend "embedded" }}
    - name: artifacts
      emptyDir:
        sizeLimit: {{ .Values.artifacts.persistence.size }}
    {{- end }}
    {{- if and (eq .Values.collections.backend "embedded") .Values.collections.persistence.existingClaim }}
    - name: collections
      persistentVolumeClaim:
        claimName: {{ .Values.collections.persistence.existingClaim }}
    {{- end }}
    {{- if .Values.photos.existingClaim }}
    - name: photos
      persistentVolumeClaim:
        claimName: {{ .Values.photos.existingClaim }}
        readOnly: true
    {{- end }}
{{- end -}}

{{- define "clipworks.claim" -}}
accessModes:
  {{- toYaml .accessModes | nindent 2 }}
{{- with .storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .size }}
{{- end -}}
