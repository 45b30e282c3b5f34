#!/usr/bin/env bash
# What the cluster tests need from Debian. As root; what is there already is left alone.
set -euo pipefail
declare -A packages=(
  [slurmctld]=slurmctld [slurmd]=slurmd [sbatch]=slurm-client [munged]=munge
  [modulecmd]=environment-modules [shellcheck]=shellcheck
  [prometheus]=prometheus [buildah]=buildah [debootstrap]=debootstrap
  [chromium]=chromium [ip]=iproute2 [cc]="gcc libc6-dev"
  [swift-proxy-server]=swift-proxy [swift-account-server]=swift-account [memcached]=memcached
  [swift-container-server]=swift-container [swift-object-server]=swift-object
)
missing=()
PATH="$PATH:/usr/sbin:/sbin"
for program in "${!packages[@]}"; do
  # shellcheck disable=SC2206 # several names
  command -v "$program" >/dev/null || missing+=(${packages[$program]})
done
if ((${#missing[@]})); then
  # Debian would start the daemons of these packages; the tests start their own.
  if [[ ! -e /usr/sbin/policy-rc.d ]]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  # A timer of the machine may hold apt's locks, and a download may fail once.
  patiently=(-o Acquire::Retries=3 -o DPkg::Lock::Timeout=300)
  for _ in {1..30}; do
    apt-get "${patiently[@]}" update -qq && break
    sleep 10
  done
  DEBIAN_FRONTEND=noninteractive apt-get "${patiently[@]}" install -y -qq --no-install-recommends \
    fonts-dejavu-core "${missing[@]}"
fi
