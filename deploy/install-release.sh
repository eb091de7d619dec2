# Sourced by install.sh: a release beside the others, the switch to it, and the way back.
# shellcheck shell=bash
# shellcheck disable=SC2154  # what the script before has set

# <prefix>/releases/<id>/   a virtual environment; `.complete` is written last
# <prefix>/current          link to the one that runs
# <prefix>/previous         link to the one before
# <prefix>/pending          there while the switch is not proven: the id before it, or nothing
# <prefix>/log/             what a release that did not become ready had to say

SETTLE_S=${INSTALL_SETTLE_S:-5}
UNITS_BEFORE=''

digest() { sha256sum | cut -c1-10; }

# Set RELEASE: version and what it is made of, so that the same is recognised and a changed one is another.
name_release() {
  local version parts
  parts=("$PROJECT/deploy/locks/runtime.txt" "$PROJECT"/systemd/*)
  if [ -n "$WHEEL" ]; then
    [ -f "$WHEEL" ] || fail "there is no wheel $WHEEL"
    [[ $(basename "$WHEEL") =~ ^continuon_brain-([0-9][A-Za-z0-9.+]*)-py3-none-any\.whl$ ]] ||
      fail "$WHEEL is no wheel of continuon-brain (continuon_brain-<version>-py3-none-any.whl)"
    version=${BASH_REMATCH[1]}
    RELEASE=$version-$(cat "$WHEEL" "${parts[@]}" | digest)
  else
    [ -f "$SOURCE/pyproject.toml" ] && [ -d "$SOURCE/brain_service" ] || fail "$SOURCE is no checkout of continuon-brain"
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$SOURCE/pyproject.toml" | head -n 1)
    RELEASE=$version-$(
      cd "$SOURCE"
      find brain_service cloud_trainer pyproject.toml -type f -not -name '*.pyc' -print0 | LC_ALL=C sort -z |
        xargs -0 sha256sum | cat - "${parts[@]}" | digest
    )
  fi
}

# Build the virtual environment in place: its programs name their own path, so it cannot be moved.
build_release() {
  local folder=$ROOT$PREFIX/releases/$RELEASE
  rm -rf "$folder"
  mkdir -p "$ROOT$PREFIX/releases"
  "$PYTHON" -m venv "$folder"
  # Exact versions, wheels only: nothing is compiled on the robot, and no build script of others runs as root.
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --only-binary=:all: --no-deps \
    -r "$PROJECT/deploy/locks/runtime.txt"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps "${WHEEL:-$SOURCE}"
  "$folder/bin/brain" --version >/dev/null
  sync -f "$folder"
  touch "$folder/.complete"
  sync "$folder/.complete"
}

install_release() {
  step "release"
  name_release
  if [ -e "$ROOT$PREFIX/releases/$RELEASE/.complete" ]; then return 0; fi
  say "building $RELEASE; with 90 packages to unpack this takes minutes on a card"
  run build_release
}

linked() { basename "$(readlink "$ROOT$PREFIX/$1" 2>/dev/null)" 2>/dev/null || true; }

# Point the link $1 at the release $2 in one step.
point() {
  ln -sfn "releases/$2" "$ROOT$PREFIX/.$1.new"
  mv -T "$ROOT$PREFIX/.$1.new" "$ROOT$PREFIX/$1"
  sync -f "$ROOT$PREFIX"
}

# Ask /readyz through the Unix socket; no token is needed.
answers_ready() {
  "$PYTHON" - "$ROOT/run/continuon-brain/brain.sock" <<'CODE'
import socket
import sys

with socket.socket(socket.AF_UNIX) as asked:
    asked.settimeout(3)
    try:
        asked.connect(sys.argv[1])
        asked.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        sys.exit(b" 200 " not in asked.recv(64).split(b"\r\n")[0] + b" ")
    except OSError:
        sys.exit(1)
CODE
}

main_pid() { systemctl show --property MainPID --value continuon-brain.service; }

# Wait until the daemon is ready, and then see that it is the same process a little later.
wait_ready() {
  local give_up=$((SECONDS + READY_TIMEOUT_S)) pid
  while [ "$SECONDS" -lt "$give_up" ]; do
    if systemctl is-active --quiet continuon-brain.service && answers_ready; then
      pid=$(main_pid)
      sleep "$SETTLE_S"
      if systemctl is-active --quiet continuon-brain.service && [ "$(main_pid)" = "$pid" ] && answers_ready; then
        return 0
      fi
    fi
    sleep 0.5
  done
  return 1
}

restart_all() {
  # A socket can change its address only while its service rests.
  if [ "$UNITS_BEFORE" != "$(cat "$ROOT$UNIT_DIR/continuon-brain.socket")" ]; then
    systemctl stop continuon-brain.service continuon-brain.socket 2>/dev/null || true
  fi
  systemctl start continuon-brain.socket
  # A start that fails is tried again by systemd; wait_ready tells what became of it.
  systemctl restart continuon-brain.service continuon-brain-jobs.service || true
}

keep_log() {
  local since=$1 file=$PREFIX/log/$RELEASE.log
  mkdir -p "$ROOT$PREFIX/log"
  {
    systemctl status --no-pager --full "${SERVICES[@]}" || true
    journalctl --no-pager --since "@$since" --unit continuon-brain.service --unit continuon-brain-jobs.service || true
  } >"$ROOT$file" 2>&1
  echo "$file"
}

give_up_on_release() {
  local before=$1 since=$2 file
  file=$(keep_log "$since")
  if [ -z "$before" ]; then
    fail "release $RELEASE did not become ready within $READY_TIMEOUT_S s, and there is none before it; see $file" 3
  fi
  step "going back to $before"
  UNITS_BEFORE=$(cat "$ROOT$UNIT_DIR/continuon-brain.socket")
  point current "$before"
  put_units "$ROOT$PREFIX/releases/$before/units"
  restart_all
  wait_ready || fail "neither release $RELEASE nor $before became ready; see $file and journalctl -u continuon-brain" 3
  rm -f "$ROOT$PREFIX/pending"
  fail "release $RELEASE did not become ready within $READY_TIMEOUT_S s; $before serves again; see $file" 3
}

# Delete what is neither current nor the one before.
prune() {
  local folder name
  for folder in "$ROOT$PREFIX"/releases/*; do
    name=$(basename "$folder")
    if [ "$name" != "$(linked current)" ] && [ "$name" != "$(linked previous)" ]; then rm -rf "$folder"; fi
  done
}

# The release is taken: remember the one before it, forget the rest.
settle() {
  if [ -n "$1" ] && [ "$1" != "$RELEASE" ]; then point previous "$1"; fi
  rm -f "$ROOT$PREFIX/pending"
  prune
}

activate_release() {
  step "switching"
  local before since pending=$ROOT$PREFIX/pending
  if [ -n "$DRY_RUN" ]; then
    [ "$(linked current)" = "$RELEASE" ] || say "would: point $PREFIX/current at $RELEASE, restart, wait until it is ready"
    return 0
  fi
  before=$(linked current)
  # After a switch that was interrupted: what runs is not proven, what ran before it is.
  if [ -e "$pending" ]; then before=$(cat "$pending"); fi
  if [ "$(linked current)" != "$RELEASE" ]; then
    CHANGED=yes
    echo "$before" >"$pending"
    sync "$pending"
    point current "$RELEASE"
  fi
  if [ -z "$START" ] || ! systemd_runs; then
    [ -n "$START" ] && say "systemd does not run here (a chroot, an image?): everything is in place, nothing was started"
    settle "$before"
    return 0
  fi
  if [ -z "$CHANGED" ] && [ ! -e "$pending" ] && all_are active; then return 0; fi
  if [ "$before" = "$RELEASE" ]; then before=$(linked previous); fi
  CHANGED=yes
  step "starting $RELEASE"
  since=$(date +%s)
  restart_all
  wait_ready || give_up_on_release "$before" "$since"
  settle "$before"
}
