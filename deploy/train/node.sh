#!/usr/bin/env bash
# Runs one node of a training; slurm.sbatch and ssh.sh start it on every node, with the same arguments.
#
#   NODES=8 ENDPOINT=node-1:29400 ID=i3d deploy/train/node.sh --data ROOT --network i3d --output RUN
#
# NODES     at most so many nodes; the training starts with those that are there, and goes on with those that stay
# ENDPOINT  host:port of the rendezvous: one of the nodes, reached by all
# ID        of the training, the same on all nodes: another on the same endpoint is not mixed up with it
# GPUS      processes a node (default auto: one a GPU, and without any one a core)
# RESTARTS  how often processes are restarted when one of them or a node is lost (default 100)
# PYTHON    the interpreter with the project installed (default python3)
#
# SIGTERM: torchrun passes it on, the step in hand is finished and saved, and the node ends. The same command
# goes on from the last checkpoint in RUN, which must lie where all nodes see it.
set -euo pipefail
: "${NODES:?how many nodes}" "${ENDPOINT:?host:port of the rendezvous}" "${ID:?a name for the training}"
exec "${PYTHON:-python3}" -m torch.distributed.run \
    --nnodes="1:$NODES" \
    --nproc-per-node="${GPUS:-auto}" \
    --max-restarts="${RESTARTS:-100}" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$ENDPOINT" \
    --rdzv-id="$ID" \
    -m trainer train "$@"
