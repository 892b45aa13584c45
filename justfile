# The commands of a contributor. `just` lists them; CONTRIBUTING.md explains when each is needed.

set positional-arguments

_list:
    @{{ just_executable() }} --list --unsorted

# start a gateway with the embedded bus, or with the arguments of `trunkline serve`
serve *args:
    cargo run --release -- serve "$@"

# run all tests, or those that the arguments of `cargo nextest run` select
test *args:
    ./test "$@"

# run the fault tests in their long form and print the table of docs/reliability.md
faults *args:
    ./test faults "$@"

# format Rust and proto files
fmt:
    cargo fmt --all
    scripts/proto format

# run clippy and mypy as CI does
lint:
    cargo clippy --workspace --locked --all-targets -- -D warnings
    scripts/mypy

# build the documentation of all crates
doc *args:
    cargo doc --workspace --no-deps "$@"

# check proto/ with buf: lint, format, compatibility; `just proto freeze` stores a release
proto *args:
    scripts/proto "$@"

# compare with plain Redis and NATS: docs/benchmarks.md
bench *args:
    cargo bench --bench side_by_side -- "$@"

# run the fuzz targets: fuzz/run [SECONDS] [TARGETS...]; docs/fuzzing.md
fuzz *args:
    fuzz/run "$@"

# build what a release consists of: docs/upgrading.md
release *args:
    scripts/release "$@"

# run everything that CI runs
ci:
    .ci/run
