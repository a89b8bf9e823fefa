#!/usr/bin/env bash
# Installs what scripts/slurm/start.sh needs, where that can be done without asking: as root on Debian or Ubuntu.
set -euo pipefail

if PATH=$PATH:/usr/sbin command -v slurmctld >/dev/null && PATH=$PATH:/usr/sbin command -v munged >/dev/null; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "slurm: install slurm-wlm and munge" >&2
    exit 1
fi
# No service is started: a container has nothing to start it with.
export DEBIAN_FRONTEND=noninteractive
timeout 60 apt-get update -qq
timeout 180 apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null
