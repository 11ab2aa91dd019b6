{{/* Envoy bootstraps, from the files that `mesh up` uses: envoy/ here is a link to the repository's envoy/. */}}

{{/* The sockets and folders of a pod; each pod has its own. */}}
{{- define "nourish.paths" -}}
run: /run/nourish
identity: /etc/nourish/identity
svid: /var/run/secrets/spiffe.io
cache: /var/cache/nourish
keys: /etc/nourish/keys
{{- end }}

{{/* A file of the chart with each ${NAME} replaced, as YAML. Takes root, file, service, subset. */}}
{{- define "nourish.bootstrap" -}}
{{- $paths := include "nourish.paths" . | fromYaml }}
{{- $text := .root.Files.Get .file | required (printf "%s is not in the chart" .file) }}
{{- $names := dict
  "NODE_ID" .service
  "SERVICE" .service
  "SUBSET" .subset
  "ZONE" ""
  "ADMIN_SOCKET" (printf "%s/admin.sock" $paths.run)
  "APP_SOCKET" (printf "%s/app.sock" $paths.run)
  "EGRESS_SOCKET" (printf "%s/egress.sock" $paths.run)
  "CONTROL_SOCKET" (printf "%s/control.sock" $paths.run)
  "TELEMETRY_SOCKET" (printf "%s/telemetry.sock" $paths.run)
  "METRICS_PORT" (dig "port" 0 (.root.Values.telemetry | default dict) | int)
  "IDENTITY_DIR" $paths.identity
  "INBOUND_ADDRESS" "0.0.0.0"
  "INBOUND_PORT" (int .root.Values.edge.port)
  "PROXIES_TLS" (include "nourish.tls" (dict "root" .root "match" "prefix" "service" "")) }}
{{- range $name, $value := $names }}
  {{- $text = replace (printf "${%s}" $name) (toString $value) $text }}
{{- end }}
{{- $bootstrap := fromYaml $text }}
{{- if or $bootstrap.Error (contains "${" (toJson $bootstrap)) }}
  {{- fail (printf "%s: %s" .file ($bootstrap.Error | default "it names a ${VARIABLE} that templates/_bootstrap.tpl does not know")) }}
{{- end }}
{{- if eq .file "envoy/sidecar.yaml" }}
  {{- include "nourish.remoteControl" (dict "root" .root "cluster" (first $bootstrap.static_resources.clusters)) }}
{{- end }}
{{- toYaml $bootstrap }}
{{- end }}

{{/* On a laptop the control plane is a socket away; here it is in another pod, behind mutual TLS. Changes `cluster`. */}}
{{- define "nourish.remoteControl" -}}
{{- $address := dict "address" (printf "control-plane.%s.svc" .root.Values.namespace) "port_value" (int .root.Values.edge.port) }}
{{- $endpoint := dict "endpoint" (dict "address" (dict "socket_address" $address)) }}
{{- $_ := set .cluster "type" "STRICT_DNS" }}
{{- $_ := set .cluster.load_assignment "endpoints" (list (dict "lb_endpoints" (list $endpoint))) }}
{{- $context := include "nourish.tls" (dict "root" .root "match" "exact" "service" "control-plane") | fromJson }}
{{- $type := "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" }}
{{- $config := dict "@type" $type "sni" "control-plane" "common_tls_context" $context }}
{{- $_ := set .cluster "transport_socket" (dict "name" "envoy.transport_sockets.tls" "typed_config" $config) }}
{{- end }}

{{/* TLS 1.3 with the pod's own identity, as JSON; the peer's SPIFFE id must match. Takes root, match, service. */}}
{{- define "nourish.tls" -}}
{{- $folder := (include "nourish.paths" . | fromYaml).identity }}
{{- $id := printf "spiffe://%s/ns/%s/sa/%s" .root.Values.trustDomain .root.Values.namespace .service }}
{{- $context := `
tls_params: { tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }
alpn_protocols: [h2]
tls_certificate_sds_secret_configs:
  - name: identity
    sds_config: { path_config_source: { path: FOLDER/sds-cert.yaml }, resource_api_version: V3 }
combined_validation_context:
  default_validation_context:
    match_typed_subject_alt_names: [{ san_type: URI, matcher: { MATCH: PEER } }]
  validation_context_sds_secret_config:
    name: trust
    sds_config: { path_config_source: { path: FOLDER/sds-ca.yaml }, resource_api_version: V3 }
` }}
{{- $context | replace "FOLDER" $folder | replace "MATCH" .match | replace "PEER" (quote $id) | fromYaml | toJson }}
{{- end }}
