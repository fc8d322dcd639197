# Shared by the scripts of this folder; sourced, with the clone as current folder.

say() { printf '== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

log_file() { mkdir -p "${TMPDIR:-/tmp}/edgeflow-logs"; printf '%s/edgeflow-logs/%s.log' "${TMPDIR:-/tmp}" "$1"; }

# as_root COMMAND...: runs it as root; asks once before the first use of sudo.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; return; fi
  command -v sudo >/dev/null 2>&1 || die "needs root for: $* (there is no sudo here)"
  if [ -z "${SUDO_AGREED:-}" ]; then
    [ -t 0 ] || die "needs root for: $* (run it as root, or from a terminal to agree to sudo)"
    printf 'This needs sudo for: %s\nUse sudo? [y/N] ' "$*" >&2
    local answer
    read -r answer
    [ "$answer" = y ] || [ "$answer" = Y ] || die "not without root: $*"
    export SUDO_AGREED=1
  fi
  sudo -- "$@"
}

APT_UPDATED=
apt_install() {
  command -v apt-get >/dev/null 2>&1 || die "please install: $* (only Debian and Ubuntu are installed by this script)"
  say "apt: installing $*"
  if [ -z "$APT_UPDATED" ]; then
    as_root apt-get update -q >"$(log_file apt)" 2>&1 || die "apt-get update failed; see $(log_file apt)"
    APT_UPDATED=1
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >"$(log_file apt)" 2>&1 \
    || { tail -n 20 "$(log_file apt)" >&2; die "apt-get install $* failed; see $(log_file apt)"; }
}

# The compose command of this machine: `docker compose` (v2) or `docker-compose` (v1 and v2).
compose_command() {
  if docker compose version >/dev/null 2>&1; then echo "docker compose"
  elif command -v docker-compose >/dev/null 2>&1; then echo "docker-compose"
  else return 1; fi
}
