# What this cluster asks for, and nothing about a run. `source slurm/site.sh` once per shell: sbatch reads SBATCH_*;
# the job reads the rest of it by itself. Another file than this one: LLAVA_SITE=FILE.

# export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=project
# export SBATCH_GPUS_PER_NODE=8      # where GPUs must be asked for
# export SBATCH_TIMELIMIT=24:00:00
# export SBATCH_SIGNAL=B:USR1@600    # seconds before the limit in which a step and a checkpoint must fit

RANKS_PER_NODE=8        # one process for each GPU of a node
export MAX_FAILURES=3   # that in a row bring no new checkpoint end the job
# module load cuda
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0   # the network between nodes: GPUs' traffic, and all else
RUN=(.venv/bin/python -m llava_train)
# RUN=(apptainer exec --nv llava.sif python -m llava_train)
