# Two images from one build:
#   docker build --target server -t qpruner-server .
#   docker build --target worker -t qpruner-worker .
# Both run as an unprivileged user with a read-only root; all they write lies in /var/lib/qpruner.

FROM debian:bookworm-slim AS build
WORKDIR /src
# Dependencies first: they change less often than the sources.
COPY scripts/install_dependencies scripts/fetch_libtorch scripts/
COPY third_party/libtorch.lock third_party/
RUN scripts/install_dependencies build && scripts/fetch_libtorch
COPY . .
RUN cmake --preset release -DQPRUNER_BUILD_TESTS=OFF \
 && cmake --build --preset release \
 && cmake --install build/release --prefix /opt/server --component qpruner-server --strip \
 && cmake --install build/release --prefix /opt/worker --component qpruner-worker --strip \
 && cmake --install build/release --prefix /opt/server --component qpruner --strip

FROM debian:bookworm-slim AS runtime
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libcurl4 libgrpc++1.51 libpq5 libprotobuf32 \
      libprometheus-cpp-core1.0 libprometheus-cpp-pull1.0 libseccomp2 libspdlog1.10 libsqlite3-0 libssl3 libyaml-cpp0.7 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 65532 --home-dir /var/lib/qpruner --create-home qpruner \
 && install -d -o qpruner -g qpruner /artifacts
USER 65532:65532
VOLUME /var/lib/qpruner

FROM runtime AS server
COPY --from=build /opt/server /usr/local
EXPOSE 7421 9464
ENTRYPOINT ["qpruner-server", "--data-dir=/var/lib/qpruner", "--listen=0.0.0.0:7421", "--metrics-listen=0.0.0.0:9464", "--insecure-metrics"]
# Without certificates and tokens the network must be private. Arguments take the place of this one: see
# docs/security.md for both.
CMD ["--insecure"]

FROM runtime AS worker
COPY --from=build /opt/worker /usr/local
ENTRYPOINT ["qpruner-worker", "--data-dir=/var/lib/qpruner"]
CMD ["--server=server:7421"]
