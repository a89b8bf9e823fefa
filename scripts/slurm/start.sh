#!/usr/bin/env bash
# Starts a Slurm of one machine, as root and without systemd: munge, slurmctld and one slurmd. For tests, not for work.
#
#   scripts/slurm/start.sh [FOLDER]           starts it; prints the path of its slurm.conf, for SLURM_CONF
#   scripts/slurm/start.sh --stop [FOLDER]    ends it and removes the folder
#
# Needs slurm-wlm and munge (scripts/slurm/install.sh). All of its files, keys and logs lie in FOLDER
# (/tmp/skipbench-slurm), and its ports are free ones: several may run side by side, and nothing of a Slurm that is set up
# here is read or changed.
set -euo pipefail

stop=no
if [ "${1:-}" = --stop ]; then
    stop=yes
    shift
fi
dir=${1:-/tmp/skipbench-slurm}

fail() {
    echo "slurm: $*" >&2
    exit 1
}

# Ends the processes whose numbers the folder holds, and no others.
end_all() {
    for name in slurmd slurmctld munged; do
        pid=$(cat "$dir/$name.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    done
}

if [ "$stop" = yes ]; then
    end_all
    rm -rf "$dir"
    exit 0
fi

for program in munged slurmctld slurmd sbatch scontrol; do
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || fail "$program is not installed"
done
PATH=$PATH:/usr/sbin
[ "$(id -u)" = 0 ] || fail "slurmd starts jobs as other users and must run as root"
export SLURM_CONF=$dir/slurm.conf
if [ -f "$SLURM_CONF" ] && scontrol ping 2>/dev/null | grep -q UP; then
    echo "$SLURM_CONF"
    exit 0
fi
end_all
mkdir -p "$dir"/{state,spool}
chmod 755 "$dir"

# munge refuses a key, a socket or a log in a folder that others may write to.
[ -s "$dir/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" || fail "munged did not start; see $dir/munged.log"

# Two ports that nobody listens on, above those that the kernel hands out.
free_port() {
    for _ in $(seq 100); do
        port=$((61000 + RANDOM % 4500))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}
controller=$(free_port)
node=$((controller + 1))

host=$(hostname -s)
cores=$(nproc)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
cat >"$SLURM_CONF" <<CONF
ClusterName=skipbench
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$node
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that was requeued waits as long as a credential lives.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
# A container has no cgroups to give away.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
# A test must not wait for what is patient with people.
KillWait=2
MinJobAge=300
InactiveLimit=0
JobRequeue=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF

slurmctld -c || fail "slurmctld did not start; see $dir/slurmctld.log"
slurmd -N "$host" || slurmd || fail "slurmd did not start; see $dir/slurmd.log"
for _ in $(seq 100); do
    case $(sinfo -h -o %T 2>/dev/null) in
    idle | mixed | allocated)
        echo "$SLURM_CONF"
        exit 0
        ;;
    esac
    sleep 0.2
done
end_all
fail "the node did not come up; see $dir/slurmd.log and $dir/slurmctld.log"
