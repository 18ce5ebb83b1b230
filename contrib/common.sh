# Shared by contrib/setup and contrib/test; sourced, never run.

# Says what happens, apart from what the programs themselves print.
say() { printf '\n==> %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Runs a command as root, with sudo where that is needed.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "this needs root, and sudo is not installed: $*"
  fi
}

# Installs those Debian packages that are missing, and asks nothing.
install_packages() {
  local missing=() package
  for package in "$@"; do
    if [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
      missing+=("$package")
    fi
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  say "Installing Debian packages: ${missing[*]}"
  command -v apt-get >/dev/null || die "apt-get is not here: install these by other means: ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
}

# Finds cargo, also where rustup puts it without the shell knowing.
need_rust() {
  PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
  export PATH
  command -v cargo >/dev/null || die "a Rust toolchain is needed (1.95 or newer): see https://rustup.rs"
}
