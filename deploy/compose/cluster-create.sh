#!/bin/sh
# Creates the Redis Cluster of docker-compose.yml if it does not exist yet, and waits until all its
# servers agree on it. It can be run any number of times.
set -u

HOST=127.0.0.1
PORTS='7001 7002 7003 7004 7005 7006'
NODES=6
SLOTS=16384
# Time limit of each wait, in seconds.
LIMIT=60

say() { echo "cluster-create: $*"; }
fail() { say "$*" >&2; exit 1; }

ask() { port=$1; shift; redis-cli -h "$HOST" -p "$port" "$@" 2>&1 | tr -d '\r'; }

# field PORT NAME: the value of one field of CLUSTER INFO.
field() { ask "$1" CLUSTER INFO | sed -n "s/^$2://p"; }

# wait_for MESSAGE COMMAND...: repeats the command until it succeeds, then prints the message.
wait_for() {
    message=$1; shift
    waited=0
    until "$@"; do
        [ "$waited" -lt $((LIMIT * 5)) ] || return 1
        waited=$((waited + 1))
        sleep 0.2
    done
    say "$message"
}

all_answer() {
    for port in $PORTS; do [ "$(ask "$port" PING)" = PONG ] || return 1; done
}

# True before the cluster is created: no server knows another one.
all_are_alone() {
    for port in $PORTS; do
        [ "$(field "$port" cluster_known_nodes)" = 1 ] || return 1
        [ "$(field "$port" cluster_slots_assigned)" = 0 ] || return 1
    done
}

all_agree() {
    for port in $PORTS; do
        [ "$(field "$port" cluster_state)" = ok ] || return 1
        [ "$(field "$port" cluster_known_nodes)" = "$NODES" ] || return 1
        [ "$(field "$port" cluster_slots_ok)" = "$SLOTS" ] || return 1
        case $(ask "$port" INFO replication) in
            *role:slave*master_link_status:up*) ;;
            *role:master*) ;;
            *) return 1 ;;
        esac
    done
}

# True when every server lists the three replicas and no server as failed or joining.
replicas_are_known() {
    for port in $PORTS; do
        nodes=$(ask "$port" CLUSTER NODES)
        [ "$(echo "$nodes" | grep -c ' slave\|,slave ')" = 3 ] || return 1
        echo "$nodes" | grep -q 'fail\|handshake' && return 1
    done
    return 0
}

wait_for 'all servers answer' all_answer || fail "not all servers answer: $PORTS"

if all_are_alone; then
    addresses=
    for port in $PORTS; do addresses="$addresses $HOST:$port"; done
    # shellcheck disable=SC2086  # Several arguments.
    redis-cli --cluster create $addresses --cluster-replicas 1 --cluster-yes ||
        fail 'the cluster was not created'
else
    say 'the cluster exists already'
fi

if ! { wait_for 'all nodes agree' all_agree &&
    wait_for 'all replicas are known' replicas_are_known; }; then
    fail 'the nodes do not agree; start over with: docker compose down --volumes'
fi
ask 7001 CLUSTER NODES
