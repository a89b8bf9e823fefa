#!/usr/bin/env bash
# A job of skipbench: {{ purpose }}.
#SBATCH --job-name={{ ("skipbench-" ~ name) | sh }}
{%- if array %}
#SBATCH --array={{ array }}
#SBATCH --nodes=1
#SBATCH --output={{ (logs ~ "/%a-of-" ~ shards ~ ".log") | sh }}
{%- if partition %}
#SBATCH --partition={{ partition | sh }}
{%- endif %}
{%- if account %}
#SBATCH --account={{ account | sh }}
{%- endif %}
{%- if gpus %}
#SBATCH --gpus={{ gpus | sh }}
{%- endif %}
{%- if cpus %}
#SBATCH --cpus-per-task={{ cpus }}
{%- endif %}
{%- if memory %}
#SBATCH --mem={{ memory | sh }}
{%- endif %}
{%- if time %}
#SBATCH --time={{ time | sh }}
{%- endif %}
{%- if exclusive %}
# Cells are timed on the processor, and nothing else may use it meanwhile.
#SBATCH --exclusive
{%- endif %}
{%- else %}
#SBATCH --output={{ (logs ~ "/collect.log") | sh }}
{%- if partition %}
#SBATCH --partition={{ partition | sh }}
{%- endif %}
{%- if account %}
#SBATCH --account={{ account | sh }}
{%- endif %}
{%- endif %}
# A job that was pre-empted, or whose node failed, is started again and goes on behind the last cell that was finished.
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
{%- if array %}

# As many threads as the job has processors.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export RAYON_NUM_THREADS=$SLURM_CPUS_PER_TASK
fi
{%- endif %}

# What a site needs goes here: `module load cuda`, HF_HOME on a file system that all nodes see, HF_HUB_OFFLINE=1.
# In a container the last line becomes one of these; {{ dir | sh }}, the checkpoints and the data must be visible in it
# under the same paths, and the program in it must be the one that submits:
#   apptainer exec --nv --bind {{ dir | sh }} skipbench.sif {{ command }}
#   docker run --rm --gpus all --network host -v {{ dir | sh }}:{{ dir | sh }} skipbench {{ command }}
# `exec` hands on the signal of a time limit.
exec {{ command }}
