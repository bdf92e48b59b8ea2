#!/bin/sh
# Sets up what demo and tests need.  setup.sh PYTHON VENV makes the virtualenv;
# setup.sh --packages [PROGRAM] installs only the packages, and the one of PROGRAM.
set -eu

missing=
more=
[ "${1-}" != --packages ] || more=${2-}
for program in monit nginx ps git $more; do
  command -v "$program" >/dev/null 2>&1 || [ -x "/usr/sbin/$program" ] ||
    missing="$missing $program"
done
if [ "${1-}" != --packages ]; then
  "$1" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
fi

if [ -n "$missing" ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "please install as root:$missing" >&2
    echo "Debian: apt-get install monit nginx-light procps git python3-venv" >&2
    echo "FreeBSD: pkg install monit nginx git" >&2
    exit 1
  fi
  echo "installing packages for:$missing"
  if command -v apt-get >/dev/null 2>&1; then
    packages=$(for p in $missing; do
      case $p in nginx) echo nginx-light ;; ps) echo procps ;; *) echo "$p" ;; esac
    done)
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends $packages >/dev/null
    # Debian starts what it installs; nobody asked for these daemons, so they do not stay.
    for p in $missing; do
      case $p in monit|nginx) service "$p" stop >/dev/null 2>&1 || true ;; esac
    done
  elif command -v pkg >/dev/null 2>&1; then
    packages=$(for p in $missing; do case $p in ps|python3-venv) ;; *) echo "$p" ;; esac; done)
    # shellcheck disable=SC2086
    pkg install -y $packages
  else
    echo "no apt-get and no pkg here, please install:$missing" >&2
    exit 1
  fi
fi

[ "${1-}" != --packages ] || exit 0
echo "setting up $2 (once, about a minute)"
"$1" -m venv "$2"
"$2/bin/pip" install -q --disable-pip-version-check --no-deps -r requirements/test.lock
# Without it Salt starts in 2 s instead of 0.7 s.
"$2/bin/python" -m compileall -q -j 0 "$2/lib" >/dev/null 2>&1 || true
touch "$2/.ready"
