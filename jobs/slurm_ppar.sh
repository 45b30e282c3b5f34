#!/usr/bin/env bash
# Train under Slurm: preempted, out of time or on a lost node, the job continues by itself until it is done.
#
#   sbatch jobs/slurm_ppar.sh configs/roads.yaml data.root=/data/shards run.dir=/data/runs/roads
#   sbatch --nodes=4 --gpus-per-node=8 --time=12:00:00 jobs/slurm_ppar.sh CONFIG key=value …
#   tail -f ppar-JOBID.log            each line of a node begins with the node's number
#   ls RUN/logs/slurm-JOBID/          the log of each rank except rank 0
#   touch RUN/STOP                    saves, ends, and is not queued again; remove the file to go on
#   scancel JOBID                     ends for good; the newest checkpoint stays
#   sbatch …same again…               goes on from it; with --nodes=1-4 on as many nodes as there are
#                                     (train.global_batch must divide by the ranks of each such number)
#   sbatch --job-name=roads --dependency=singleton …      several times: one after the other
#   ppar-dist sweep GRID.yaml --slurm jobs/slurm_ppar.sh  writes an array whose tasks are this script
#
# Relative paths start at the folder of submission; RUN (run.dir) must be on storage that all nodes share. Options
# of sbatch go before the script's name. A --time of a few minutes is too short: the last three are for saving.
# Before Slurm starts a job that was queued again it waits, 2 minutes unless the site says otherwise.
#
# What a site needs, by environment:
#
#   PPAR_VENV=FOLDER           a virtual environment; else ppar-dist is taken from PATH as it was at submission
#   PPAR_MODULES="a b"         modules to load;  PPAR_SETUP=FILE   bash to source, for all else
#   PPAR_CONTAINER=IMAGE       run in it, with PPAR_CONTAINER_RUN ("apptainer exec --nv", plus --bind …)
#   PPAR_SRUN="…"              options for srun: --container-image=… of pyxis, --network=…
#   PPAR_NPROC=K               ranks on each node (default: its GPUs in this job, else 1)
#   PPAR_PORT=N                where the ranks meet on the first node (default: from the job's number)
#   PPAR_MAX_REQUEUES=3        starts in a row without a new checkpoint after which it is not queued again
#                              (preempted ones do not count)
#   PPAR_STOP_FILE=FILE        instead of RUN/STOP
#   PPAR_TARGETS_DIR=FOLDER    a list of the ranks' metric endpoints for Prometheus (file_sd), while it runs
#
# Exit codes: 0 done; 75 not done, submit again to go on; 78 configuration, data or set-up wrong; 70 internal
# error; 130 stopped by RUN/STOP. Only 75 is queued again, as often as PPAR_MAX_REQUEUES allows; so is what was
# killed (137, often memory), and a job of which Slurm could not start a part.
#
#SBATCH --job-name=ppar
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=ppar-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# 180 s before the end of its time (Slurm may be a minute early): more than faults.grace_s, within which the ranks
# save and end. To the script (B:) and not to the ranks, because it may come when they have not been started yet.
#SBATCH --signal=B:USR1@180

# shellcheck disable=SC2016,SC2317 # one text is for the nodes' bash; traps call what seems unreachable

set -euo pipefail

readonly DONE=0 INTERNAL=70 RESUME=75 WRONG=78 STOPPED=130
# srun ends with the highest code of its tasks; of 70 on one node and 75 on another 70 must win.
readonly INTERNAL_ON_A_NODE=79
readonly STOP_LOOK_S=10
readonly CONTROLLER_TRIES=20 CONTROLLER_WAIT_S=15

say() { printf 'ppar job %s: %s\n' "$SLURM_JOB_ID" "$*"; }

fail() { # CODE MESSAGE…
  say "${*:2}" >&2
  exit "$1"
}

main() {
  : "${SLURM_JOB_ID:?is not set; this script is for sbatch: sbatch jobs/slurm_ppar.sh CONFIG [key=value …]}"
  # By its number alone Slurm takes an array's last task for the whole array.
  local task=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}
  job_id=${task:-$SLURM_JOB_ID}
  signals=0 step='' watcher='' targets='' run='' stop=''
  trap on_request USR1
  trap 'signals=$((signals + 1))' TERM # Slurm signals the ranks as well
  trap clean_up EXIT
  cd "$SLURM_SUBMIT_DIR"
  unset "${!SQUEUE_@}" # a user's filters
  (($#)) || fail $WRONG 'no configuration: sbatch jobs/slurm_ppar.sh CONFIG [key=value …]'
  set_up
  monitor
  set -- "$1" "${monitoring[@]}" "${@:2}"
  read_configuration "$@"
  export PPAR_RANK_LOGS=$run/logs/slurm-$SLURM_JOB_ID PPAR_ASKED=$run/logs/slurm-$SLURM_JOB_ID.asked
  forget "$PPAR_ASKED"
  [[ ! -e $stop ]] || fail $STOPPED "not started: $stop exists; remove it to go on"
  before=$(newest_step)
  end_if_finished "$before"
  train "$@"
  judge "$code" "$before"
}

# --- the environment, and what the configuration says -------------------------------------------------------

set_up() {
  inside=() everywhere=()
  set +eu # what sites write is seldom meant for these
  [[ -z ${PPAR_SETUP:-} ]] || load "$PPAR_SETUP"
  if [[ -n ${PPAR_MODULES:-} ]]; then
    declare -F module >/dev/null || load /etc/profile.d/modules.sh /etc/profile.d/lmod.sh
    # shellcheck disable=SC2086 # several names
    module load $PPAR_MODULES || fail $WRONG "PPAR_MODULES: module load $PPAR_MODULES failed"
  fi
  [[ -z ${PPAR_VENV:-} ]] || load "$PPAR_VENV/bin/activate"
  set -eu
  if [[ -n ${PPAR_CONTAINER:-} ]]; then
    read -ra inside <<<"${PPAR_CONTAINER_RUN:-apptainer exec --nv}"
    inside+=("$PPAR_CONTAINER")
  fi
  local cpus options
  # One task on a node starts all its ranks, so it takes all that the job has there. Left to itself, srun would
  # give it one CPU, or what the job was given for each task.
  unset SLURM_CPUS_PER_TASK SLURM_GPUS_PER_TASK SLURM_NTASKS_PER_GPU SLURM_TRES_PER_TASK
  cpus=$(tr ',' '\n' <<<"$SLURM_JOB_CPUS_PER_NODE" | sed 's/(.*//' | sort -n | head -n 1)
  read -ra options <<<"${PPAR_SRUN:-}"
  everywhere=(
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1
    --cpus-per-task="$cpus" ${SLURM_GPUS_ON_NODE:+--gpus-per-node="$SLURM_GPUS_ON_NODE"}
    --export=ALL "${options[@]}"
  )
  nproc=${PPAR_NPROC:-${SLURM_GPUS_ON_NODE:-1}}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > nproc ? cpus / nproc : 1))}
}

load() { # FILE…: the first that is there
  local file
  for file; do
    # shellcheck disable=SC1090
    if [[ -r $file ]]; then
      source "$file"
      return 0
    fi
  done
  fail $WRONG "cannot load $*: no such file"
}

monitor() {
  monitoring=()
  [[ -n ${PPAR_TARGETS_DIR:-} ]] || return 0
  targets=$PPAR_TARGETS_DIR/ppar-$SLURM_JOB_ID.json
  rm -f "$targets" # of a start that was killed
  monitoring=(monitoring.address=0.0.0.0 monitoring.port=0 "monitoring.targets_file=$targets")
}

# Every node reads the configuration before any trains: one without the program, the container or the storage
# would leave the others waiting.
read_configuration() { # CONFIG key=value…
  local said code word try settings=("$1")
  for word in "${@:2}"; do # without options of train, as --accept-changes
    [[ $word == -* || $word != *=* ]] || settings+=("$word")
  done
  for try in first second; do
    code=0
    said=$("${everywhere[@]}" --kill-on-bad-exit=0 --wait=0 "${inside[@]}" \
      ppar-dist config "${settings[@]}" --get run.dir --get train.steps) || code=$?
    [[ $code == 1 && $try == first ]] || break # srun's own: the controller may be restarting
    job_state >/dev/null
  done
  ((code < 128)) || judge $RESUME '' # Slurm ended it, or a node does not answer
  ((code == 0)) ||
    fail $WRONG "a node cannot run ppar-dist with this configuration (code $code, see above); where it is, say" \
      'PPAR_VENV, PPAR_MODULES, PPAR_SETUP or PPAR_CONTAINER. Not queued again'
  run=$(sed -n 's/^run\.dir=//p' <<<"$said" | sort -u)
  steps=$(sed -n 's/^train\.steps=//p' <<<"$said" | sort -u)
  [[ -n $run && $run != *$'\n'* && $steps =~ ^[0-9]+$ ]] ||
    fail $WRONG "the nodes read different configurations: $said"
  stop=${PPAR_STOP_FILE:-$run/STOP}
  forget ".ppar-$SLURM_JOB_ID.stuck"
}

# --- training -----------------------------------------------------------------------------------------------

train() { # CONFIG key=value…; sets code
  local master
  master=$(master_address):${PPAR_PORT:-$((20000 + (SLURM_JOB_ID + 97 * ${SLURM_RESTART_COUNT:-0}) % 10000))}
  code=$RESUME
  ((signals == 0)) || return 0 # asked to end while it was starting
  say "start $((${SLURM_RESTART_COUNT:-0} + 1)) at step $before of $steps:" \
    "$SLURM_JOB_NODELIST, $nproc ranks each, meeting at $master"
  # A task that has ended does not end the others: ranks that lose a peer save and end by themselves, and rank
  # 0 may be scoring when the others are done.
  "${everywhere[@]}" --kill-on-bad-exit=0 --wait=0 --label bash -c "$ON_A_NODE" ppar \
    "${inside[@]}" ppar-dist train "$@" --nproc "$nproc" --nodes "$SLURM_JOB_NUM_NODES" --master "$master" &
  step=$!
  ((signals == 0)) || kill -USR1 "$step" 2>/dev/null || : # it came while srun was being started
  watch_stop_file &
  watcher=$!
  await_step
  step=''
}

# What each node runs. Signals reach all its processes; bash has to outlive them to pass the code on. One that
# came before srun had started this is in the file. Who dies of one (USR1 138, TERM 143) was not listening yet and
# had nothing to save; who was killed (137) could not. Codes from 128 on but for 130 are left to srun itself.
readonly ON_A_NODE='
  asked=
  trap asked=1 USR1 TERM
  [[ ! -e $PPAR_ASKED && -z $asked ]] || exit '$RESUME'
  "$@" --node-rank "$SLURM_NODEID"
  code=$?
  case $code in
    137 | 138 | 143) exit '$RESUME' ;;
    0 | '$RESUME' | '$WRONG' | '$STOPPED') exit $code ;;
    *) exit $((code > '$RESUME' && code < 128 ? code : '$INTERNAL_ON_A_NODE')) ;;
  esac'

# By the address that Slurm itself uses: a node's name may be in no directory, or stand for 127.0.1.1.
master_address() {
  local name address
  name=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  name=$(scontrol show node --oneliner "$name" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
  address=$(getent ahosts "$name" | awk '$2 == "STREAM" && $1 !~ /^(127\.|::1$)/ { print $1; exit }')
  [[ -n $address ]] || address=$(hostname -I | cut -d' ' -f1) # this script runs on the first node
  [[ $address != *:* ]] || address="[$address]"
  printf '%s' "${address:-$name}"
}

on_request() { # once: ranks take a second signal for the wish to end without saving
  signals=$((signals + 1))
  ((signals == 1)) || return 0
  say 'asked to save and end'
  [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null || : # srun passes it on to all nodes
  # It hears nothing while it starts.
  [[ -z ${PPAR_ASKED:-} ]] || { mkdir -p "${PPAR_ASKED%/*}" && : >"$PPAR_ASKED"; } 2>/dev/null || :
}

watch_stop_file() {
  while [[ ! -e $stop ]]; do sleep $STOP_LOOK_S; done
  kill -USR1 $$
}

await_step() {
  local seen
  while :; do
    seen=$signals
    code=0
    wait "$step" 2>/dev/null || code=$?
    ((code > 128 && signals > seen)) || break # a trap cuts the wait short
  done
}

# --- how it ended -------------------------------------------------------------------------------------------

judge() { # CODE STEP-BEFORE
  local code=$1
  # srun's own, never a rank's: 1, also for what Slurm killed because of its memory; 128 and more where bash itself
  # was killed on a node, or a node did not answer.
  ((code != 1 && (code < 128 || code == STOPPED))) || code=$RESUME
  case $code in
    "$DONE") say 'done' ;;
    "$RESUME") requeue "$2" ;;
    "$INTERNAL" | "$INTERNAL_ON_A_NODE") fail $INTERNAL 'internal error, see above; not queued again' ;;
    "$WRONG") fail $WRONG 'configuration or data wrong, see above; not queued again' ;;
    *)
      end_with_slurm
      fail "$code" "ended with code $code, see above; not queued again"
      ;;
  esac
  exit $DONE
}

# Also within the grace time of a preemption: Slurm does not queue a job again that ends before it.
requeue() { # STEP-BEFORE
  end_with_slurm
  [[ -z $stop || ! -e $stop ]] || fail $STOPPED "not queued again: $stop exists; $(newest_checkpoint)"
  count_start "$1"
  ((stuck < ${PPAR_MAX_REQUEUES:-3})) || fail $RESUME "no new checkpoint in $stuck starts in a row" \
    '(PPAR_MAX_REQUEUES); not queued again. Mend what the log names and submit again'
  clean_up       # what follows the requeue may not be run
  end_with_slurm # a job that was cancelled meanwhile would be queued again all the same
  say "queued again; $(newest_checkpoint)"
  scontrol requeue "$job_id" || fail $RESUME 'Slurm refuses (--no-requeue?); submit it again'
  exit $RESUME
}

# Where Slurm is ending the job already, there is nothing to decide: it was cancelled or is out of time, or a
# node was lost or a preemption took too long, after which Slurm itself queues it again.
end_with_slurm() {
  local state
  state=$(job_state)
  # SIGNALING: RUNNING, with a signal of Slurm on its way to the nodes.
  [[ $state == RUNNING || $state == SIGNALING ]] ||
    fail $RESUME "Slurm is ending the job (${state:-unknown}); $(newest_checkpoint)"
}

job_state() {
  local tries
  for ((tries = 1; tries <= CONTROLLER_TRIES; tries++)); do # the controller may be restarting
    squeue --noheader --jobs="$job_id" --format=%T && return 0
    sleep $CONTROLLER_WAIT_S
  done
}

# Starts that end before RUN is known are counted where the job's log is.
count_start() { # STEP-BEFORE; sets stuck: starts in a row that made no checkpoint
  local file=.ppar-$SLURM_JOB_ID.stuck new=0 so_far
  [[ -z $run ]] || file=$run/logs/slurm-$SLURM_JOB_ID.stuck
  so_far=$(cat "$file" 2>/dev/null || echo 0)
  if [[ -z $run ]] || (($(newest_step) <= $1)); then
    new=$((so_far + 1))
    ! is_preempted || new=$so_far
  fi
  if { mkdir -p "$(dirname "$file")" && echo "$new" >"$file"; } 2>/dev/null; then
    stuck=$new
  else
    stuck=$((new ? ${SLURM_RESTART_COUNT:-0} + 1 : 0)) # nothing can be remembered: every start counts
  fi
}

is_preempted() {
  [[ $(SLURM_TIME_FORMAT=standard scontrol show job --oneliner "$job_id") =~ \ PreemptTime=[0-9] ]]
}

newest_checkpoint() { echo "newest checkpoint: step $(newest_step)"; }

newest_step() { # a checkpoint's folder appears when it is whole
  local folder newest=0
  for folder in "$run"/checkpoints/step-*; do
    [[ ! -d $folder ]] || newest=$((10#${folder##*-}))
  done
  echo $newest
}

end_if_finished() { # STEP; the report is the last thing that a run writes
  local last
  last=$run/checkpoints/$(printf 'step-%08d' "$1")
  if (($1 >= steps)) && [[ $run/report.html -nt $last ]]; then
    say "nothing to do: $run has all $steps steps and its report"
    exit $DONE
  fi
}

clean_up() {
  [[ -z $watcher ]] || kill "$watcher" 2>/dev/null || :
  [[ -z $targets ]] || forget "$targets"
  [[ -z ${PPAR_ASKED:-} ]] || forget "$PPAR_ASKED"
}

forget() { rm -f "$1" 2>/dev/null || :; } # FILE; whether its folder can be written is for the ranks to say

main "$@"
