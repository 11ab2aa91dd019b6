{{/* The parts that every pod of the mesh has. All take root, service and subset. */}}

{{- define "nourish.labels" -}}
app.kubernetes.io/name: {{ .service }}
app.kubernetes.io/part-of: nourish
nourish.local/subset: {{ .subset }}
{{- end }}

{{- define "nourish.metadata" -}}
namespace: {{ .root.Values.namespace }}
labels:
  app.kubernetes.io/name: {{ .service }}
  app.kubernetes.io/part-of: nourish
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "nourish.image" -}}
image: {{ printf "%s:%s" .root.Values.image.repository .root.Values.image.tag | quote }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{/* Proxy and application run as one user: their sockets are open to nobody else. */}}
{{- define "nourish.podSecurity" -}}
serviceAccountName: {{ .service }}
automountServiceAccountToken: false
enableServiceLinks: false
# preStop, then 15 s of the runtime's drain, then the proxy.
terminationGracePeriodSeconds: 40
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* Starts before the application and ends after it. Its port opens when the control plane has given it its listener. */}}
{{- define "nourish.proxy" -}}
{{- $paths := include "nourish.paths" . | fromYaml }}
- name: envoy
  restartPolicy: Always
  {{- include "nourish.image" . | nindent 2 }}
  command: [envoy]
  args:
    - --config-path
    - /etc/nourish/envoy/bootstrap.yaml
    - --config-yaml
    - "node: {id: $(POD_NAME), locality: {zone: \"$(POD_ZONE)\"}}"
    - --disable-hot-restart
    - --concurrency
    - {{ ternary "2" "1" (eq .service "edge") | quote }}
    - --drain-time-s
    - "5"
    - --drain-strategy
    - immediate
    - -l
    - warning
  env:
    - { name: POD_NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
    # The node's zone, which Kubernetes 1.35 and later writes on its pods; empty before.
    - { name: POD_ZONE, valueFrom: { fieldRef: { fieldPath: "metadata.labels['topology.kubernetes.io/zone']" } } }
  ports:
    - { name: grpc, containerPort: {{ int .root.Values.edge.port }} }
  startupProbe: { tcpSocket: { port: grpc }, periodSeconds: 1, failureThreshold: 120 }
  readinessProbe: { tcpSocket: { port: grpc }, periodSeconds: 5 }
  resources:
    requests: { cpu: 50m, memory: 64Mi }
    limits: { memory: 640Mi } # above the heap limit of the bootstrap, which refuses work first
  volumeMounts:
    - { name: run, mountPath: {{ $paths.run }} }
    - { name: envoy, mountPath: /etc/nourish/envoy, readOnly: true }
    - { name: identity, mountPath: {{ $paths.identity }}, readOnly: true }
    - { name: svid, mountPath: {{ $paths.svid }}, readOnly: true }
{{- end }}

{{- define "nourish.proxyVolumes" -}}
- { name: run, emptyDir: { medium: Memory, sizeLimit: 16Mi } }
- { name: envoy, configMap: { name: {{ .service }}-{{ .subset }}-envoy } }
- { name: identity, configMap: { name: identity } }
- name: svid
  csi:
    driver: spiffe.csi.cert-manager.io
    readOnly: true
    volumeAttributes: { spiffe.csi.cert-manager.io/fs-group: "65532" }
{{- end }}

{{- define "nourish.proxyConfig" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .service }}-{{ .subset }}-envoy
  {{- include "nourish.metadata" . | nindent 2 }}
data:
  bootstrap.yaml: |
    {{- include "nourish.bootstrap" . | nindent 4 }}
{{- end }}

{{/* An application is there when its socket takes connections. Whether it serves well is asked by its callers' proxies,
through gRPC's health service; a process that fails ends, and is started again. */}}
{{- define "nourish.socketProbe" -}}
exec:
  command: [python, -I, -S, -c, "import socket; socket.socket(socket.AF_UNIX).connect('{{ . }}')"]
{{- end }}

{{/* Takes address too: whether the cluster gives the service one. Proxies balance among the pods themselves; `found` by
the control plane are the pods of a Service that its subset stands on: the cluster puts its labels on its EndpointSlices. */}}
{{- define "nourish.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .service }}{{ if ne .subset "stable" }}-{{ .subset }}{{ end }}
  {{- include "nourish.metadata" . | nindent 2 }}
    {{- if .found }}
    nourish.local/subset: {{ .subset }}
    {{- end }}
spec:
  {{- if not .address }}
  clusterIP: None
  {{- end }}
  selector:
    {{- include "nourish.labels" . | nindent 4 }}
  ports:
    - { name: grpc, port: {{ int .root.Values.edge.port }}, targetPort: grpc }
{{- end }}

{{- define "nourish.account" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .service }}
  {{- include "nourish.metadata" . | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
