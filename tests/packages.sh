# Sourced by tests/run and benches/run: installs Debian packages when it can (as root, with apt-get), without starting their
# services. What cannot be done is named in a line that begins with "left out:"; with TESTS_REQUIRE_CLIENTS=1 it is a failure instead.
# shellcheck shell=bash

readonly attempts=3
readonly pause_seconds=5
readonly policy=/usr/sbin/policy-rc.d
readonly policy_mark="made by roadstead's tests/packages.sh"
readonly kept_policy=$policy.kept-by-roadstead

say() {
    printf '%s\n' "$*" >&2
}

left_out() {
    if [[ ${TESTS_REQUIRE_CLIENTS:-} == 1 ]]; then
        say "required: $*"
        exit 1
    fi
    say "left out: $*"
}

missing_packages() {
    local package
    for package in "$@"; do
        if [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
            printf '%s\n' "$package"
        fi
    done
}

# The packages of docker, of the registry and of nginx start services when they are installed, the registry on port 5000. While
# this policy is in place, none starts.
forbid_services() {
    # A killed run may have left its own policy, with the machine's already put aside.
    if [[ -e $policy ]] && ! grep --quiet -- "$policy_mark" "$policy"; then
        mv -- "$policy" "$kept_policy"
    fi
    trap allow_services EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\n# %s\nexit 101\n' "$policy_mark" >"$policy"
    chmod 0755 "$policy"
}

allow_services() {
    rm -f -- "$policy"
    if [[ -e $kept_policy ]]; then
        mv -- "$kept_policy" "$policy"
    fi
    trap - EXIT INT TERM
}

repeatedly() {
    local attempt
    for ((attempt = 1; attempt <= attempts; attempt++)); do
        if "$@"; then
            return 0
        fi
        say "attempt $attempt of $attempts failed: $*"
        if ((attempt < attempts)); then
            sleep "$pause_seconds"
        fi
    done
    return 1
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -o Acquire::Retries=2 "$@" </dev/null
}

# Installs those of the packages in the arguments that are missing, or says why it cannot.
install_packages() {
    local missing
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "no apt-get here: what is not installed will be left out"
        return
    fi
    mapfile -t missing < <(missing_packages "$@")
    if ((${#missing[@]} == 0)); then
        return
    fi
    if ((EUID != 0)); then
        left_out "installing ${missing[*]} (not root)"
        return
    fi
    say "installing ${missing[*]}"
    forbid_services
    if ! { repeatedly apt -o APT::Update::Error-Mode=any update && repeatedly apt install --yes --no-install-recommends "${missing[@]}"; } >&2; then
        left_out "${missing[*]} (apt-get failed)"
    fi
    allow_services
}

find_cargo() {
    if ! command -v cargo >/dev/null; then
        PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    fi
}
