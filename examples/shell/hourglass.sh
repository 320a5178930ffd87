#!/usr/bin/env bash
# A client of Hourglass from a shell, with buf, which asks the service itself for the schema (reflection), and jq.
set -euo pipefail

usage() {
	cat <<'EOF'
usage: hourglass.sh [FLAGS] models
       hourglass.sh [FLAGS] encode IN.npy [ROW]

  models                  the models that are ready, a line each
  encode IN.npy [ROW]     the latent of one row of a file of numpy (default: the first), as JSON

  --model NAME[/VERSION]  which model (default: mnist-conv)
  --address HOST:PORT     the service (default: HOURGLASS_ADDRESS, else 127.0.0.1:50051)
  --tls                   encrypt, and trust the roots of this machine
  --tls-ca FILE           encrypt, and trust these roots (PEM)
  --tls-cert FILE, --tls-key FILE
                          who we are, for mutual TLS (PEM)
  --token-file FILE       a bearer token (default: HOURGLASS_TOKEN, else none)

Needs jq, and buf: on the PATH, or from `npm ci` in this folder.
EOF
}

die() {
	echo "$1" >&2
	exit 1
}

model=mnist-conv
address=${HOURGLASS_ADDRESS:-127.0.0.1:50051}
token=${HOURGLASS_TOKEN:-}
scheme=http
curl_flags=(--protocol grpc)
while [[ ${1:-} == --* ]]; do
	case $1 in
	--help) usage && exit 0 ;;
	--tls) scheme=https && shift && continue ;;
	esac
	[[ $# -ge 2 ]] || { usage >&2 && exit 2; }
	case $1 in
	--model) model=$2 ;;
	--address) address=$2 ;;
	--tls-ca) scheme=https && curl_flags+=(--cacert "$2") ;;
	--tls-cert) scheme=https && curl_flags+=(--cert "$2") ;;
	--tls-key) scheme=https && curl_flags+=(--key "$2") ;;
	--token-file) token=$(<"$2") ;;
	*) usage >&2 && exit 2 ;;
	esac
	shift 2
done
here=$(dirname "$0")
PATH=$PATH:$here/node_modules/.bin
for tool in buf jq; do
	command -v "$tool" >/dev/null || die "$tool: is needed; see --help"
done
if [[ -n $token && $scheme == http && ! $address =~ ^(localhost|127(\.[0-9]+){3}|\[::1\]):[0-9]+$ ]]; then
	die "token: sent without TLS only to a loopback address, not to $address"
fi

# The header goes through a descriptor: the arguments of a process are there for all to read.
ask() {
	if [[ -n $token ]]; then
		buf curl "${curl_flags[@]}" --header @<(echo "authorization: Bearer $token") "$@"
	else
		buf curl "${curl_flags[@]}" "$@"
	fi
}

# call METHOD: the answer to the JSON on stdin, as JSON. An error is printed as JSON, with its details, and the exit code is eight
# times its status. Where the schema was not to be had, buf does not say why; with the one of the repository the call does.
call() {
	local url=$scheme://$address/autoencoder.v1.AutoencoderService/$1 status=0 request errors
	request=$(cat)
	exec 3>&1
	errors=$(ask --reflect-header '*' --data @- "$url" <<<"$request" 2>&1 >&3) || status=$?
	if [[ $status -gt 0 && $status -lt 8 ]]; then
		status=0
		errors=$(ask --schema "$here/../../proto" --data @- "$url" <<<"$request" 2>&1 >&3) || status=$?
	fi
	[[ -z $errors ]] || echo "$errors" >&2
	return "$status"
}

models() {
	echo '{}' | call ListModels | jq --raw-output '.models[]
		| "\(.name)/\(.version)  \(.input.rowShape | join("x")) -> \(.latent.rowShape | join("x"))  "
		+ ([.operations[] | ltrimstr("OPERATION_") | ascii_downcase] | join(","))'
}

# encode FILE ROW: in JSON `data` is the base64 of the elements as they lie in memory, row-major and little-endian, which is
# how they lie in a file of numpy behind its header. The same way back: base64 --decode, and od to read them.
encode() {
	local file=$1 row=$2 length header type shape width size
	[[ -r $file ]] || die "$file: cannot be read"
	length=$(od -An -tu2 --skip-bytes 8 --read-bytes 2 "$file")
	header=$(head --bytes $((10 + length)) "$file" | tail --bytes +11)
	type=$(sed --quiet "s/.*'descr': '\([^']*\)'.*/\1/p" <<<"$header")
	shape=$(sed --quiet "s/.*'fortran_order': False, 'shape': (\([^)]*[0-9]\)).*/[\1]/p" <<<"$header")
	[[ -n $shape ]] || die "$file: must be an array of numpy, row-major, of rows"
	case $type in
	'|u1') type=DATA_TYPE_UINT8 width=1 ;;
	'<f4') type=DATA_TYPE_FLOAT32 width=4 ;;
	*) die "$file: must be of uint8 or float32; got '$type'" ;;
	esac
	jq --exit-status --argjson row "$row" '$row >= 0 and $row < .[0]' <<<"$shape" >/dev/null ||
		die "row: must be one of the rows of $shape; got $row"
	size=$(jq --argjson width "$width" '.[1:] | reduce .[] as $each ($width; . * $each)' <<<"$shape")
	dd if="$file" iflag=skip_bytes,count_bytes skip=$((10 + length + row * size)) count="$size" bs=64K status=none |
		base64 --wrap 0 |
		jq --raw-input --arg model "$model" --arg type "$type" --argjson shape "$shape" '{
			model: ($model | split("/") | {name: .[0], version: (.[1] // "")}),
			rows: {dtype: $type, shape: [1, $shape[1:][]], data: .}
		}' |
		call Encode | {
		answer=$(cat)
		[[ -n $answer ]] || exit 0 # the error has been printed
		jq --raw-output .latents.data <<<"$answer" | base64 --decode | od -An -tfF -v --width=4 |
			jq --slurp --compact-output --argjson answer "$answer" '{
				model: $answer.execution.modelName,
				version: $answer.execution.modelVersion,
				shape: [$answer.latents.shape[] | tonumber],
				latents: .
			}'
	}
}

case ${1:-},$# in
models,1) models ;;
encode,2 | encode,3) encode "$2" "${3:-0}" ;;
*) usage >&2 && exit 2 ;;
esac
