FROM rust:1-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python3 -m venv /build && /build/bin/pip install "maturin>=1.9,<2" && /build/bin/maturin build --release --out /dist

FROM python:3.11-slim-bookworm
COPY --from=build /dist/*.whl /tmp/
RUN pip install --no-cache-dir /tmp/*.whl && rm /tmp/*.whl && useradd --system roostmq && mkdir /config /data && chown roostmq /config /data
USER roostmq
VOLUME ["/config", "/data"]
# Everything is kept in /data unless the configuration names another place.
ENV STATE_DIRECTORY=/data
EXPOSE 1883 18083
# A container is reached over the network: say who may connect in /config/roost.toml.
ENTRYPOINT ["roost"]
CMD ["run", "--config", "/config/roost.toml"]
