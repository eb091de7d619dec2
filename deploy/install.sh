#!/usr/bin/env bash
# Installs, updates and removes the robot's brain on Raspberry Pi OS or Debian: Bookworm or Trixie, arm64 or amd64.
# What it does and why: docs/install.md. Every step may be interrupted: run it again and it goes on.
set -Eeuo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PROJECT=$(dirname "$HERE")
# shellcheck source=deploy/install-steps.sh
. "$HERE/install-steps.sh"
# shellcheck source=deploy/install-release.sh
. "$HERE/install-release.sh"

usage() {
  cat <<'TEXT'
usage: install.sh [options]             install, or update to what is given
       install.sh --uninstall [--purge]

  --source DIR         build from this checkout (default: the one that this script is in)
  --wheel FILE         install this wheel
  --prefix DIR         where releases go (default: /opt/continuon-brain)
  --data-dir DIR       what the daemon keeps (default: /var/lib/continuon-brain); not below /home, /root or /tmp
  --python PROGRAM     the interpreter, 3.11 or newer (default: python3)
  --ready-timeout S    how long a release may take to become ready before the one before comes back (default: 90)
  --no-start           install everything, start nothing
  --dry-run            say what would be done, and do nothing
  --uninstall          remove the program and its units; recordings, models, settings and tokens stay
  --purge              with --uninstall: remove those and the user as well
  --root DIR           install into the tree below DIR instead of / (tests, images)
  --help               this text

exit codes: 0 done (or nothing to do), 1 a step failed, 2 wrong usage, 3 the new release did not become ready (the
one before serves again, if there was one)

examples:
  sudo deploy/install.sh
  sudo deploy/install.sh --wheel continuon_brain-0.2.0-py3-none-any.whl
  sudo deploy/install.sh --uninstall
TEXT
}

ROOT='' PREFIX='' DATA_DIR='' WHEEL='' SOURCE='' PYTHON=python3
READY_TIMEOUT_S=90 START=yes DRY_RUN='' UNINSTALL='' PURGE=''

wrong() {
  echo "install.sh: $1; see --help" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  option=$1
  case $option in
    --prefix | --data-dir | --wheel | --source | --python | --ready-timeout | --root)
      [ $# -ge 2 ] || wrong "$option needs a value"
      value=$2
      shift
      ;;
  esac
  case $option in
    --prefix) PREFIX=${value%/} ;;
    --data-dir) DATA_DIR=${value%/} ;;
    --wheel) WHEEL=$value ;;
    --source) SOURCE=$value ;;
    --python) PYTHON=$value ;;
    --ready-timeout) READY_TIMEOUT_S=$value ;;
    --root) ROOT=${value%/} ;;
    --no-start) START='' ;;
    --dry-run) DRY_RUN=yes ;;
    --uninstall) UNINSTALL=yes ;;
    --purge) PURGE=yes ;;
    -h | --help) usage && exit 0 ;;
    *) wrong "unknown option $option" ;;
  esac
  shift
done
[ -z "$PURGE" ] || [ -n "$UNINSTALL" ] || wrong "--purge goes with --uninstall"
[ -z "$WHEEL" ] || [ -z "$SOURCE" ] || wrong "--wheel and --source exclude each other"
[[ $READY_TIMEOUT_S =~ ^[0-9]+$ ]] || wrong "--ready-timeout $READY_TIMEOUT_S is no number of seconds"
remember_choices
PREFIX=${PREFIX:-/opt/continuon-brain} DATA_DIR=${DATA_DIR:-/var/lib/continuon-brain}
for path in "$PREFIX" "$DATA_DIR"; do
  # They go into unit files and through sed.
  [[ $path =~ ^/[A-Za-z0-9._/-]+$ ]] || wrong "$path is no absolute path of letters, digits, '.', '_' and '-'"
  [[ ! $path =~ (^|/)\.\.(/|$) ]] || wrong "$path has '..' in it"
done
[[ ! $PREFIX =~ ^/(bin|boot|dev|etc|home|lib|opt|proc|root|run|sbin|srv|sys|tmp|usr|var)$ ]] ||
  wrong "--prefix $PREFIX is a directory of the system; name one of your own, like $PREFIX/continuon-brain"
# The units see neither of these (ProtectHome, PrivateTmp).
[[ ! $DATA_DIR =~ ^/(home|root|run/user|tmp|var/tmp)(/|$) ]] || wrong "--data-dir $DATA_DIR is hidden from services"
[[ ! $DATA_DIR =~ ^/(bin|boot|dev|etc|lib|media|mnt|opt|proc|run|sbin|srv|sys|usr|var|var/lib)$ ]] ||
  wrong "--data-dir $DATA_DIR is a directory of the system; name one of your own, like $DATA_DIR/continuon-brain"

trap 'echo "install.sh: \"$BASH_COMMAND\" failed; what was done stays, run it again to go on" >&2' ERR

[ "$(id -u)" = 0 ] || [ -n "$DRY_RUN" ] || wrong "this needs root: sudo $0"
if [ -n "$UNINSTALL" ]; then
  uninstall
  exit 0
fi
SOURCE=${SOURCE:-$PROJECT}
check_machine
lock_out_others
install_packages
install_account
install_settings
install_release
install_units
activate_release
if [ -n "$DRY_RUN" ]; then
  say "nothing was done"
elif [ -n "$CHANGED" ]; then
  say "installed: release $RELEASE"
else
  say "nothing to do: release $RELEASE is installed"
fi
say "what it says of itself: brain health --token-file $ETC/tokens (as root); its log: journalctl -u continuon-brain"
