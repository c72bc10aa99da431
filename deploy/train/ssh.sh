#!/usr/bin/env bash
# A training on machines that are reached by ssh.
#
#   deploy/train/ssh.sh node-1 node-2 node-3 -- --data /shared/k400 --network i3d --output /shared/runs/i3d
#
# The first machine is the rendezvous. The repository lies at the same path on all of them (REPOSITORY, default
# this one's), as does the interpreter (PYTHON, default python3). Ctrl-C or SIGTERM here stops all of them, each
# after its step in hand is saved; the same call goes on. A machine that is lost ends its own line only: start it
# again with the same call on that machine's name alone, with RENDEZVOUS=node-1 and NODES=3, and it joins.
#
# SSH         what runs a command there, called as: $SSH HOST COMMAND (default ssh -o BatchMode=yes)
# RENDEZVOUS  the machine that the others meet at (default: the first), PORT its port (default 29400)
# NODES       at most so many (default: those named); GPUS, RESTARTS: see node.sh
# ID          of the training (default: from the arguments, so that the same call has the same)
set -euo pipefail
hosts=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    hosts+=("$1")
    shift
done
if [ ${#hosts[@]} -eq 0 ] || [ $# -lt 2 ]; then
    echo "usage: $0 HOST... -- TRAIN-ARGUMENTS" >&2
    exit 2
fi
shift
read -r -a ssh <<<"${SSH:-ssh -o BatchMode=yes}"
repository=${REPOSITORY:-$(cd "$(dirname "$0")/../.." && pwd)}
id=${ID:-train-$(printf '%s\0' "$@" | cksum | cut -d ' ' -f 1)}
settings=$(printf '%q ' NODES="${NODES:-${#hosts[@]}}" ENDPOINT="${RENDEZVOUS:-${hosts[0]}}:${PORT:-29400}" \
    ID="$id" GPUS="${GPUS:-auto}" RESTARTS="${RESTARTS:-100}" PYTHON="${PYTHON:-python3}")
arguments=$(printf '%q ' "$@")

lines=()
note() { # where this call keeps the process number of its machine $1; homes may be shared
    printf '~/.quovadis-%q-"$(uname -n)"-%s.pid' "$id" "$1"
}
for number in "${!hosts[@]}"; do
    # The shell there becomes the node, so its process number is the node's: `stop` asks for it.
    "${ssh[@]}" "${hosts[$number]}" \
        "cd $(printf '%q' "$repository") && echo \$\$ > $(note "$number") &&" \
        "exec env $settings deploy/train/node.sh $arguments" &
    lines+=($!)
done
stop() {
    trap '' TERM INT
    for number in "${!hosts[@]}"; do # the number may be another program's by now
        "${ssh[@]}" "${hosts[$number]}" "pid=\$(cat $(note "$number")) &&" \
            "grep -qa -e torch.distributed.run -e node.sh /proc/\$pid/cmdline && kill -TERM \$pid" || true
    done
}
trap stop TERM INT
status=0
for line in "${lines[@]}"; do
    wait "$line" || status=$?
    while kill -0 "$line" 2>/dev/null; do # a signal ended the waiting, not the node
        wait "$line" || status=$?
    done
done
exit "$status"
