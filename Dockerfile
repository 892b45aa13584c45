# The gateway as an image: built by Rust, run by nobody (uid 65532), without a shell.
#
#   docker build -t trunkline .
#   docker run --rm -p 127.0.0.1:7420:7420 trunkline
#   docker run --rm -p 127.0.0.1:7420:7420 -v "$PWD/trunkline.json:/trunkline.json:ro" trunkline serve --config /trunkline.json
#
# Other base images, for a mirror or another distribution: --build-arg RUST_IMAGE=... --build-arg RUNTIME_IMAGE=...
# What the second needs: glibc of the first's age or newer, libgcc_s, and the certificates of public authorities for
# `rediss://` URLs.
ARG RUST_IMAGE=rust:1.91-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /trunkline
# The dependencies are a layer of their own: a change of the sources does not compile them again.
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
RUN mkdir src && : > src/lib.rs && echo 'fn main() {}' > src/main.rs && \
    cargo build --release --locked --bin trunkline && \
    rm -r src
COPY src src
COPY deploy/redis deploy/redis
# Cargo goes by time stamps: the sources may be older than the empty ones above.
RUN find src -name '*.rs' -exec touch {} + && \
    cargo build --release --locked --bin trunkline && \
    cp target/release/trunkline /usr/local/bin/trunkline
# The names of functions stay, for backtraces.
RUN strip --strip-debug /usr/local/bin/trunkline

FROM ${RUNTIME_IMAGE}
COPY --from=build /usr/local/bin/trunkline /usr/local/bin/trunkline
USER 65532:65532
EXPOSE 7420 7421
# Exit code 0 if the gateway serves; it does not while its bus is not proven.
HEALTHCHECK --interval=5s --timeout=6s --start-period=10s --retries=3 CMD ["trunkline", "status"]
# The gateway is process 1: SIGTERM reaches it and it drains, within `drain.delay` + `drain.timeout` (10 s as they stand, which
# is also what `docker stop` waits: give it more with `--time` or `stop_grace_period`).
STOPSIGNAL SIGTERM
ENTRYPOINT ["trunkline"]
# In a container, nobody reaches what listens on loopback alone. As it stands, it is in plain text and open to whoever reaches it,
# which must be said: publish the port to those you trust only, or set `tls` and `auth`. Arguments of your own replace these.
CMD ["serve", "--listen", "0.0.0.0:7420", "--admin", "0.0.0.0:7421", "--set", "insecure=true"]
