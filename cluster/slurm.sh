#!/usr/bin/env bash
# Run a command on a Ray cluster made of the nodes that Slurm allocates; Ray ends with the command.
#   sbatch --nodes=2 --gpus-per-node=8 cluster/slurm.sh python pipelines/pretrain.py --data ... --output ...
# Submit it from the project's folder on a filesystem that all nodes share, with .venv made there (`make setup`).
#SBATCH --job-name=ajepa
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --output=%x-%j.log
set -euo pipefail

if (($# == 0)); then
  echo "usage: sbatch [options] cluster/slurm.sh COMMAND [ARGUMENT...]" >&2
  exit 2
fi
if [[ -d .venv/bin ]]; then export PATH="$PWD/.venv/bin:$PATH"; fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]} # where Slurm runs this script

# The head's address on the network that leads to the last node, and a port that is free there.
read -r ip port < <(python - "${nodes[-1]}" <<'PYTHON'
import socket
import sys

with socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
    udp.connect((sys.argv[1], 9))  # sends nothing
    tcp.bind((udp.getsockname()[0], 0))
    print(*tcp.getsockname())
PYTHON
)

# A token for this job alone: others on the network cannot use this Ray.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

steps=()
stop_ray() {
  if ((${#steps[@]})); then kill "${steps[@]}" 2>/dev/null || true; fi
  wait
}
trap stop_ray EXIT

start_ray() { # how many nodes, which nodes (an option of srun), options of `ray start`
  srun --nodes="$1" --ntasks="$1" "$2" --cpus-per-task="$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=0 \
    ray start --block --num-cpus="$SLURM_CPUS_ON_NODE" "${@:3}" &
  steps+=($!)
}

start_ray 1 --nodelist="$head" --head --node-ip-address="$ip" --port="$port"
until (: >"/dev/tcp/$ip/$port") 2>/dev/null; do
  kill -0 "${steps[0]}" # ends the job if the head ended
  sleep 1
done
if ((${#nodes[@]} > 1)); then
  start_ray $((${#nodes[@]} - 1)) --exclude="$head" --address="$ip:$port"
fi

export RAY_ADDRESS="$ip:$port"
python - "${#nodes[@]}" <<'PYTHON'
import sys
import time

import ray

wanted, joined, problem = int(sys.argv[1]), 0, ""
deadline = time.monotonic() + 300
while joined < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"only {joined} of {wanted} nodes joined Ray within 5 minutes {problem}")
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
        joined = sum(node["Alive"] for node in ray.nodes())
    except Exception as error:  # the head still starts
        problem = f"({error})"
    time.sleep(1)
print(f"{joined} nodes joined Ray", flush=True)
PYTHON

# Two minutes before the time limit Slurm sends USR1 to this script alone: the command writes a checkpoint and ends.
trap 'kill "$command"' USR1
"$@" &
command=$!
code=0
wait "$command" || code=$?
if kill -0 "$command" 2>/dev/null; then # the signal came
  code=0
  wait "$command" || code=$?
fi
exit "$code"
