# Sourced by install.sh: the machine, the account, settings, units, removal. Each step looks before it changes.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is read by the scripts beside this one

ETC=/etc/continuon-brain
UNIT_DIR=/etc/systemd/system
UNITS=(continuon-brain.service continuon-brain.socket continuon-brain-jobs.service continuon_learning.slice)
SERVICES=(continuon-brain.socket continuon-brain.service continuon-brain-jobs.service)
PACKAGES=(python3 python3-venv ca-certificates)
MIN_FREE_KB=2500000 # a release is about 1 GB, and the one before stays
CHANGED=''

say() { echo "$*"; }

step() { echo "==> $*"; }

# Do it, or with --dry-run say it; either way something was to be done.
run() {
  CHANGED=yes
  if [ -n "$DRY_RUN" ]; then
    echo "would: $*"
  else
    "$@"
  fi
}

# As run, of what changes nothing that is installed.
quietly() {
  if [ -n "$DRY_RUN" ]; then
    echo "would: $*"
  else
    "$@"
  fi
}

fail() {
  echo "install.sh: $1" >&2
  exit "${2:-1}"
}

systemd_runs() { [ -d "$ROOT/run/systemd/system" ]; }

# Whether each of our services is active, or enabled; asked together, one that is would do for all.
all_are() {
  local unit
  for unit in "${SERVICES[@]}"; do systemctl "is-$1" --quiet "$unit" 2>/dev/null || return 1; done
}

have() { command -v "$1" >/dev/null 2>&1; }

# What was chosen at the installation holds on, unless it is given anew.
remember_choices() {
  local unit=$ROOT$UNIT_DIR/continuon-brain.service
  [ -r "$unit" ] || return 0
  if [ -z "$PREFIX" ]; then PREFIX=$(sed -n 's#^ExecStart=\(.*\)/current/bin/brain .*#\1#p' "$unit"); fi
  if [ -z "$DATA_DIR" ]; then DATA_DIR=$(sed -n 's#.*BRAIN_DATA_DIR=\([^ ]*\).*#\1#p' "$unit"); fi
}

check_machine() {
  step "looking at the machine"
  local id='' codename='' machine free_kb parent
  if [ -r "$ROOT/etc/os-release" ]; then
    id=$(sed -n 's/^ID=//p' "$ROOT/etc/os-release" | tr -d '"')
    codename=$(sed -n 's/^VERSION_CODENAME=//p' "$ROOT/etc/os-release" | tr -d '"')
  fi
  case $id-$codename in
    debian-bookworm | debian-trixie | raspbian-bookworm | raspbian-trixie) ;;
    *) say "warning: this is made for Debian and Raspberry Pi OS, Bookworm or Trixie; here is '$id $codename'" ;;
  esac
  machine=$(uname -m)
  case $machine in
    aarch64 | x86_64) ;;
    *) fail "no wheels exist for $machine: install the 64-bit Raspberry Pi OS" ;;
  esac
  parent=$ROOT$PREFIX
  while [ ! -d "$parent" ]; do parent=$(dirname "$parent"); done
  free_kb=$(df -Pk "$parent" | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -ge "$MIN_FREE_KB" ] ||
    fail "$((free_kb / 1000)) MB are free at $PREFIX, a release and its predecessor need $((MIN_FREE_KB / 1000)) MB"
  if systemd_runs && [ -r /sys/fs/cgroup/cgroup.controllers ] && ! grep -qw memory /sys/fs/cgroup/cgroup.controllers; then
    say "warning: the kernel limits no memory, so a training may take all of it; add 'cgroup_enable=memory' to"
    say "         /boot/firmware/cmdline.txt (one line) and reboot"
  fi
}

lock_out_others() {
  [ -z "$DRY_RUN" ] || return 0
  mkdir -p "$ROOT$PREFIX"
  exec 9>>"$ROOT$PREFIX/.install.lock"
  flock -n 9 || fail "another install.sh is at work on $PREFIX; wait for it"
}

install_packages() {
  step "packages"
  local package missing=()
  have dpkg-query || {
    say "no dpkg: install ${PACKAGES[*]} yourself"
    return 0
  }
  for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    run env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  fi
  [ -n "$DRY_RUN" ] || "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$PYTHON is older than 3.11; name another with --python"
}

# Copy a file where it differs, and set PUT. (Not by its exit code: bash heeds no failure inside a condition.)
put() {
  local from=$1 to=$ROOT$2
  PUT=''
  cmp -s "$from" "$to" || PUT=yes
  if [ -n "$PUT" ]; then run install -D -m 0644 "$from" "$to"; fi
}

owner() { awk -F: '$1 == "continuon" { print $3 ":" $4 }' "$ROOT/etc/passwd" 2>/dev/null || true; }

# Reload udev's rules and let them act on the devices that are there.
apply_udev() {
  udevadm control --reload && udevadm trigger --subsystem-match=hailo_chardev || say "udev not told; reboot"
}

install_account() {
  step "user and directories"
  put "$PROJECT/systemd/continuon-brain.sysusers.conf" /usr/lib/sysusers.d/continuon-brain.conf
  [ -n "$(owner)" ] || run systemd-sysusers ${ROOT:+--root="$ROOT"} continuon-brain.conf
  put "$PROJECT/systemd/continuon-brain.tmpfiles.conf" /usr/lib/tmpfiles.d/continuon-brain.conf
  [ -d "$ROOT$ETC" ] && [ -d "$ROOT/run/continuon-brain" ] && [ -d "$ROOT/var/cache/continuon-brain" ] ||
    run systemd-tmpfiles ${ROOT:+--root="$ROOT"} --create continuon-brain.conf
  if [ ! -d "$ROOT$DATA_DIR" ]; then
    run install -d -m 0750 "$ROOT$DATA_DIR"
    run chown "$(owner)" "$ROOT$DATA_DIR"
  fi
  put "$PROJECT/systemd/60-continuon-brain.rules" /usr/lib/udev/rules.d/60-continuon-brain.rules
  if [ -n "$PUT" ] && systemd_runs && have udevadm; then quietly apply_udev; fi
}

# Write standard input to a new file that is whole or not there, with its mode and owner.
create() {
  local to=$ROOT$1 mode=$2 owned_by=$3
  (umask 077 && cat >"$to.new")
  chmod "$mode" "$to.new"
  chown "$owned_by" "$to.new"
  sync "$to.new"
  mv "$to.new" "$to"
}

random_token() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

create_tokens() {
  create "$ETC/tokens" 0600 "$(owner)" <<TEXT
$(random_token) control,operate,read # operator
$(random_token) control # robot
$(random_token) read # monitor
TEXT
}

create_settings() {
  create "$ETC/brain.toml" 0640 "0:$(owner | cut -d: -f2)" <<TEXT
# Settings of the robot's brain: README.md names them all. Where it listens is in continuon-brain.socket.
tokens_file = "$ETC/tokens"
TEXT
}

install_settings() {
  step "settings and tokens"
  # Never overwritten: they are the owner's.
  [ -s "$ROOT$ETC/tokens" ] || run create_tokens
  [ -e "$ROOT$ETC/brain.toml" ] || run create_settings
}

# Print a unit as this installation needs it.
unit_text() {
  local extra=''
  if [ "$DATA_DIR" != /var/lib/continuon-brain ]; then extra="\nReadWritePaths=$DATA_DIR"; fi
  sed -e "s#/opt/continuon-brain/#$PREFIX/#" \
    -e "s#BRAIN_DATA_DIR=/var/lib/continuon-brain#BRAIN_DATA_DIR=$DATA_DIR#" \
    -e "s#--data-dir /var/lib/continuon-brain#--data-dir $DATA_DIR#" \
    -e "s#^ProtectSystem=strict\$#&$extra#" "$1"
}

# Put the units of the folder $1 in place.
put_units() {
  local unit changed=''
  for unit in "${UNITS[@]}"; do
    put "$1/$unit" "$UNIT_DIR/$unit"
    changed=$changed$PUT
  done
  if [ -n "$changed" ] && systemd_runs; then quietly systemctl daemon-reload; fi
}

install_units() {
  step "units"
  # Each release keeps the units that it came with, so that going back goes back to them too.
  local kept=$ROOT$PREFIX/releases/$RELEASE/units wanted unit
  wanted=$(mktemp -d)
  for unit in "${UNITS[@]}"; do unit_text "$PROJECT/systemd/$unit" >"$wanted/$unit"; done
  UNITS_BEFORE=$(cat "$ROOT$UNIT_DIR/continuon-brain.socket" 2>/dev/null || true)
  put_units "$wanted"
  if [ -z "$DRY_RUN" ] && ! diff -rq "$wanted" "$kept" >/dev/null 2>&1; then
    mkdir -p "$kept"
    cp "$wanted"/* "$kept"
  fi
  rm -r "$wanted"
  if [ "$(readlink "$ROOT/usr/local/bin/brain" 2>/dev/null)" != "$PREFIX/current/bin/brain" ]; then
    run mkdir -p "$ROOT/usr/local/bin"
    run ln -sfn "$PREFIX/current/bin/brain" "$ROOT/usr/local/bin/brain"
  fi
  if ! have systemctl; then
    say "no systemctl: enable ${SERVICES[*]} yourself"
  elif ! all_are enabled; then
    run systemctl enable --quiet "${SERVICES[@]}"
  fi
}

uninstall() {
  step "removing the program"
  local unit path
  if have systemctl; then
    if systemd_runs; then quietly systemctl stop "${SERVICES[@]}" 2>/dev/null || true; fi
    quietly systemctl disable --quiet "${SERVICES[@]}" 2>/dev/null || true
  fi
  for unit in "${UNITS[@]}"; do run rm -f "$ROOT$UNIT_DIR/$unit"; done
  run rm -f "$ROOT/usr/local/bin/brain" "$ROOT/usr/lib/udev/rules.d/60-continuon-brain.rules" \
    "$ROOT/usr/lib/tmpfiles.d/continuon-brain.conf" "$ROOT/usr/lib/sysusers.d/continuon-brain.conf"
  run rm -rf "$ROOT$PREFIX/releases" "$ROOT$PREFIX/current" "$ROOT$PREFIX/previous" "$ROOT$PREFIX/pending" \
    "$ROOT$PREFIX/log" "$ROOT$PREFIX/.install.lock" "$ROOT/var/cache/continuon-brain" "$ROOT/run/continuon-brain"
  [ ! -d "$ROOT$PREFIX" ] || quietly rmdir --ignore-fail-on-non-empty "$ROOT$PREFIX"
  if have systemctl && systemd_runs; then quietly systemctl daemon-reload; fi
  if [ -z "$PURGE" ]; then
    say "removed; recordings and models stay in $DATA_DIR, settings and tokens in $ETC (--purge removes them too)"
    return 0
  fi
  step "removing data, settings and the user"
  if [ -d "$ROOT$DATA_DIR" ] && [ "$DATA_DIR" != /var/lib/continuon-brain ] && [ ! -e "$ROOT$DATA_DIR/.lock" ]; then
    fail "$DATA_DIR holds no daemon's data; nothing in it was removed"
  fi
  for path in "$DATA_DIR" "$ETC"; do run rm -rf "$ROOT$path"; done
  if [ -n "$(owner)" ]; then run userdel ${ROOT:+--root "$ROOT"} continuon; fi
  say "removed, with all data and settings"
}
