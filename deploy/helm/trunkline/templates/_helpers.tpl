{{- define "trunkline.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "trunkline.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "trunkline.labels" -}}
{{ include "trunkline.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "trunkline.metadata" -}}
name: {{ include "trunkline.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "trunkline.labels" . | nindent 2 }}
{{- end -}}

{{/* What the schema of the values cannot say in words. */}}
{{- define "trunkline.check" -}}
{{- with .Values -}}
{{- $types := list "Embedded" "Redis" "RedisCluster" "RedisSentinel" -}}
{{- if not (has .redis.type $types) -}}
{{- fail (printf "\nredis.type: %q is none of %s.\nTo try it: --set redis.type=Embedded,replicas=1,insecure=true" .redis.type (join ", " $types)) -}}
{{- end -}}
{{- if eq .redis.type "Embedded" -}}
{{- if or .autoscaling.enabled (ne (int .replicas) 1) -}}
{{- fail "\nredis.type Embedded is for one gateway, which shares its events with no other: set replicas to 1, without autoscaling, or name a Redis" -}}
{{- end -}}
{{- else if not .redis.urls -}}
{{- fail (printf "\nredis.urls: %s needs at least one, such as rediss://redis:6379" .redis.type) -}}
{{- end -}}
{{- if and (eq .redis.type "Redis") (gt (len .redis.urls) 1) -}}
{{- fail "\nredis.urls: Redis is one server, and takes one URL; several servers are RedisCluster or RedisSentinel" -}}
{{- end -}}
{{- if and (not .tls.secret) (not .insecure) -}}
{{- fail "\ntls.secret: names a Secret with tls.crt and tls.key. For plain text, to everybody who reaches the port: insecure=true" -}}
{{- end -}}
{{- if and .tls.secret .insecure -}}
{{- fail "\ninsecure: is for plain text, and tls.secret is set: remove one of them" -}}
{{- end -}}
{{- if and .tls.clientCertificates (not .tls.secret) -}}
{{- fail "\ntls.clientCertificates: needs tls.secret" -}}
{{- end -}}
{{- range .auth.identities -}}
{{- if and .tokenKey (not $.Values.auth.secret) -}}
{{- fail (printf "\nauth.secret: names the Secret that has the key %s of the identity %s" .tokenKey .name) -}}
{{- end -}}
{{- end -}}
{{- if and .networkPolicy.enabled (ne .redis.type "Embedded") -}}
{{- $usual := eq .redis.type "RedisSentinel" | ternary "26379" "6379" -}}
{{- $ports := list -}}
{{- range .networkPolicy.redis.ports -}}{{- $ports = append $ports (printf "%d" (int .)) -}}{{- end -}}
{{- range .redis.urls -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" (urlParse .).host) | default $usual -}}
{{- if not (or (has $port $ports) (hasPrefix "unix" .)) -}}
{{- fail (printf "\nnetworkPolicy.redis.ports: lacks %s, the port of a server in redis.urls" $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The object `coordinator` of the configuration. */}}
{{- define "trunkline.coordinator" -}}
{{- $redis := .Values.redis -}}
{{- $folder := "/etc/trunkline-redis/" -}}
{{- $coordinator := dict "@type" $redis.type -}}
{{- if ne $redis.type "Embedded" -}}
{{- if eq $redis.type "Redis" -}}
{{- $_ := set $coordinator "url" (first $redis.urls) -}}
{{- else -}}
{{- $_ := set $coordinator "urls" $redis.urls -}}
{{- end -}}
{{- if eq $redis.type "RedisSentinel" -}}
{{- $_ := set $coordinator "masterName" $redis.masterName -}}
{{- end -}}
{{- if $redis.username -}}
{{- $_ := set $coordinator "authUsername" $redis.username -}}
{{- end -}}
{{- if and (eq $redis.type "RedisSentinel") $redis.sentinelUsername -}}
{{- $_ := set $coordinator "sentinelUsername" $redis.sentinelUsername -}}
{{- end -}}
{{- if $redis.secret -}}
{{- if $redis.passwordKey -}}
{{- $_ := set $coordinator "authSecret" (dict "@type" "File" "filePath" (print $folder $redis.passwordKey)) -}}
{{- end -}}
{{- if and (eq $redis.type "RedisSentinel") $redis.sentinelPasswordKey -}}
{{- $_ := set $coordinator "sentinelSecret" (dict "@type" "File" "filePath" (print $folder $redis.sentinelPasswordKey)) -}}
{{- end -}}
{{- $tls := dict -}}
{{- range $name, $key := dict "caCertificate" $redis.caKey "clientCertificate" $redis.certificateKey "clientKey" $redis.privateKeyKey -}}
{{- if $key -}}{{- $_ := set $tls $name (print $folder $key) -}}{{- end -}}
{{- end -}}
{{- if $tls -}}{{- $_ := set $coordinator "tls" $tls -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- mustMergeOverwrite $coordinator $redis.options | toJson -}}
{{- end -}}

{{/* The configuration of the gateways. */}}
{{- define "trunkline.config" -}}
{{- include "trunkline.check" . -}}
{{- with .Values -}}
{{- $config := dict "listen" "0.0.0.0:7420" "admin" "0.0.0.0:7421" "logFormat" "json" -}}
{{- $drain := dict -}}
{{- range $name, $seconds := .drain -}}{{- $_ := set $drain $name (printf "%ds" (int $seconds)) -}}{{- end -}}
{{- $_ := set $config "drain" $drain -}}
{{- if .insecure -}}
{{- $_ := set $config "insecure" true -}}
{{- else -}}
{{- $tls := dict "certificate" "/etc/trunkline-tls/tls.crt" "privateKey" "/etc/trunkline-tls/tls.key" -}}
{{- with .tls.clientCertificates -}}
{{- $_ := set $tls "clientCa" "/etc/trunkline-tls/ca.crt" -}}
{{- $_ := set $tls "clientCertificates" . -}}
{{- end -}}
{{- $_ := set $config "tls" $tls -}}
{{- end -}}
{{- with .auth.identities -}}
{{- $identities := list -}}
{{- range . -}}
{{- $identity := omit . "tokenKey" -}}
{{- with .tokenKey -}}
{{- $_ := set $identity "tokens" (list (dict "@type" "File" "filePath" (print "/etc/trunkline-tokens/" .))) -}}
{{- end -}}
{{- $identities = append $identities $identity -}}
{{- end -}}
{{- $_ := set $config "auth" (dict "identities" $identities) -}}
{{- end -}}
{{- with .frameKey -}}
{{- if .secret -}}
{{- $_ := set $config "frameKey" (dict "@type" "File" "filePath" (print "/etc/trunkline-frame-key/" .key)) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $config "coordinator" (include "trunkline.coordinator" $ | fromJson) -}}
{{- mustMergeOverwrite $config .config | toPrettyJson -}}
{{- end -}}
{{- end -}}

{{/* The secrets that are mounted: name of the volume, name of the Secret. */}}
{{- define "trunkline.secrets" -}}
{{- $secrets := dict -}}
{{- with .Values -}}
{{- with .tls.secret -}}{{- $_ := set $secrets "tls" . -}}{{- end -}}
{{- with .auth.secret -}}{{- $_ := set $secrets "tokens" . -}}{{- end -}}
{{- with .redis.secret -}}{{- $_ := set $secrets "redis" . -}}{{- end -}}
{{- with .frameKey.secret -}}{{- $_ := set $secrets "frame-key" . -}}{{- end -}}
{{- end -}}
{{- toJson $secrets -}}
{{- end -}}
