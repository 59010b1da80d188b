# Sourced by train.sh: how many processes a run gets, and what starts them.
#
# NUM_PROCESSES      processes on this machine (default: one for each GPU; one without a GPU)
# ACCELERATE_CONFIG  file for accelerate launch in place of scripts/accelerate's choice: on GPUs, and on a
#                    CPU where it asks for FSDP or DeepSpeed (scripts/accelerate/{fsdp,deepspeed_zero2}.yaml)
# NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
#                    several machines: the same command on each (in a Slurm job all but the number
#                    of processes is found)
# shellcheck shell=bash

# GPUs that a process would see.
count_gpus() {
    if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        local seen
        IFS=, read -ra seen <<<"${CUDA_VISIBLE_DEVICES}"
        [[ "${seen[0]:-}" == -1 ]] && echo 0 || echo "${#seen[@]}"
    elif command -v nvidia-smi >/dev/null; then
        nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true
    else
        echo 0
    fi
}

count_cores() { getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1; }

# A whole number from 1 on, the value $2 of the variable $1; anything else ends the script.
check_count() {
    [[ "$2" =~ ^[1-9][0-9]*$ ]] && return
    say "$1: expected a whole number from 1 on, found $2"
    exit 2
}

# Set `nodes`, `node`, `address` and `port` from torch's variables, or a Slurm job's.
find_nodes() {
    nodes="${NNODES:-${SLURM_NNODES:-1}}"
    node="${NODE_RANK:-${SLURM_NODEID:-}}"
    address="${MASTER_ADDR:-}"
    port="${MASTER_PORT:-29500}"
    check_count NNODES "$nodes"
    ((nodes > 1)) || return 0
    if [[ -z "$address" && -n "${SLURM_JOB_NODELIST:-}" ]] && command -v scontrol >/dev/null; then
        read -r address < <(scontrol show hostnames "$SLURM_JOB_NODELIST") || true
    fi
    if [[ -z "$address" || ! "$node" =~ ^[0-9]+$ ]] || ((node >= nodes)); then
        say "NNODES=$nodes: expected MASTER_ADDR, the first machine's address, and NODE_RANK from 0 to" \
            "$((nodes - 1)), found MASTER_ADDR=$address and NODE_RANK=$node"
        exit 2
    fi
}

# Fill LAUNCH with what starts the entry point, and say what was found. "$@" are the run's words.
choose_launcher() {
    local gpus processes nodes node address port total config threads divided
    gpus="$(count_gpus)"
    [[ " $* " == *" --cpu "* ]] && gpus=0
    processes="${NUM_PROCESSES:-$((gpus > 1 ? gpus : 1))}"
    check_count NUM_PROCESSES "$processes"
    find_nodes
    total=$((processes * nodes))
    divided=""
    if ((total > 1)) && { [[ " $* " == *" --shard_llm "* ]] || file_asks_for FSDP; }; then
        divided="; the LLM's layers are divided among all $total"
    elif ((total > 1)) && file_asks_for DEEPSPEED; then
        divided="; gradients and optimizer are divided among all $total"
    fi
    if ((gpus == 0)) && { file_asks_for FSDP || file_asks_for DEEPSPEED; }; then
        launch_by_file_on_cpu
    elif ((gpus == 0)); then
        launch_on_cpu
    else
        launch_on_gpus
    fi
}

# Whether the file that is given asks for the engine $1: FSDP divides the LLM's layers among the processes,
# DEEPSPEED gradients and optimizer of what is trained.
file_asks_for() {
    [[ -n "${ACCELERATE_CONFIG:-}" ]] && grep -Eqs "^distributed_type: *\"?$1\"? *$" "$ACCELERATE_CONFIG"
}

launch_on_cpu() {
    LAUNCH=("$PYTHON")
    [[ -z "${ACCELERATE_CONFIG:-}" ]] || say "ACCELERATE_CONFIG is not read: without a GPU it is for FSDP and DeepSpeed"
    if ((total == 1)); then
        say "No GPU is used: one process on the CPU"
        return
    fi
    # accelerate launch starts one process on a CPU, whatever its flags say.
    LAUNCH+=(-m torch.distributed.run --nproc_per_node "$processes")
    if ((nodes > 1)); then
        LAUNCH+=(--nnodes "$nodes" --node_rank "$node" --master_addr "$address" --master_port "$port")
    else
        LAUNCH+=(--standalone)
    fi
    divide_cores
    say "No GPU is used: $processes processes on the CPU, $OMP_NUM_THREADS thread(s) each$(of_nodes)$divided"
}

# For these accelerate launch starts as many processes on a CPU as on GPUs.
launch_by_file_on_cpu() {
    by_accelerate "$ACCELERATE_CONFIG"
    divide_cores
    say "No GPU is used: $processes process(es) on the CPU by accelerate launch with $ACCELERATE_CONFIG," \
        "$OMP_NUM_THREADS thread(s) each$(of_nodes)$divided"
}

divide_cores() {
    threads=$(($(count_cores) / processes))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}"
}

launch_on_gpus() {
    if ((processes > gpus)); then
        say "NUM_PROCESSES: expected at most $gpus, the GPUs of this machine, found $processes"
        exit 2
    fi
    config=single_gpu
    ((processes == 1)) || config=multi_gpu
    ((nodes == 1)) || config=multi_node
    config="${ACCELERATE_CONFIG:-$PROJECT_ROOT/scripts/accelerate/$config.yaml}"
    by_accelerate "$config"
    say "$gpus GPU(s): $processes process(es) by accelerate launch with $config$(of_nodes)$divided"
}

by_accelerate() {
    LAUNCH=("$PYTHON" -m accelerate.commands.launch --config_file "$1" --num_processes "$total")
    if ((nodes > 1)); then
        LAUNCH+=(--num_machines "$nodes" --machine_rank "$node" --main_process_ip "$address" --main_process_port "$port")
    fi
}

of_nodes() { ((nodes == 1)) || printf ', machine %s of %s, the first at %s:%s' "$node" "$nodes" "$address" "$port"; }
