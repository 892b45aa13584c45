# The gateway as an image without a shell. It runs as uid 65532.
#
#   docker build -t trunkline .
#   docker run --rm -p 127.0.0.1:7420:7420 trunkline
#   docker run --rm -p 127.0.0.1:7420:7420 -v "$PWD/trunkline.json:/trunkline.json:ro" \
#       trunkline serve --config /trunkline.json
#
# Other base images: --build-arg RUST_IMAGE=... --build-arg RUNTIME_IMAGE=...
# The runtime image needs a glibc at least as new as that of the Rust image, libgcc_s, and the
# certificates of public authorities for `rediss://` URLs.
ARG RUST_IMAGE=rust:1.91-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /trunkline
# The dependencies are a layer of their own: a change of the sources does not rebuild them.
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY crates crates
RUN mkdir src && : > src/lib.rs && echo 'fn main() {}' > src/main.rs && \
    cargo build --release --locked --bin trunkline && \
    rm -r src
COPY src src
COPY deploy/redis deploy/redis
COPY docs/glossary.md docs/glossary.md
# Cargo compares time stamps, and the sources may be older than the empty files above.
RUN find src -name '*.rs' -exec touch {} + && \
    cargo build --release --locked --bin trunkline && \
    cp target/release/trunkline /usr/local/bin/trunkline
# Function names are kept, for backtraces.
RUN strip --strip-debug /usr/local/bin/trunkline

FROM ${RUNTIME_IMAGE}
COPY --from=build /usr/local/bin/trunkline /usr/local/bin/trunkline
USER 65532:65532
EXPOSE 7420 7421
# Exit code 0 if the gateway serves, which it does not while its bus is not verified.
HEALTHCHECK --interval=5s --timeout=6s --start-period=10s --retries=3 CMD ["trunkline", "status"]
# The gateway is process 1: it receives SIGTERM and drains within `drain.delay` + `drain.timeout`,
# 10 s by default. `docker stop` waits 10 s too: raise that with `--time` or `stop_grace_period`.
STOPSIGNAL SIGTERM
ENTRYPOINT ["trunkline"]
# A container must listen on all addresses to be reachable. This default is in plain text and has no
# authentication: publish the port to trusted networks only, or set `tls` and `auth`. Arguments of
# `docker run` replace it.
CMD ["serve", "--listen", "0.0.0.0:7420", "--admin", "0.0.0.0:7421", "--set", "insecure=true"]
