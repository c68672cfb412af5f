# The cloud tier: cloud, aggregate and exporter, and the commands that look after topics and sites.
# Build with --build-arg REQUIREMENTS=train for an image that can train (torch: 4.5 GB).
# Runs as user 10001 and needs no writable file but /tmp.
#   docker build -f deploy/cloud.Dockerfile -t tidegate-cloud .
# Layers, the rarest change first: base, packages (340 MB, the same in both tiers' images), Tidegate (4 MB).
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS packages
ARG REQUIREMENTS=base
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/tidegate
COPY requirements/ requirements/
RUN /build/bin/pip --python /opt/tidegate/bin/python install --no-cache-dir --require-hashes -r requirements/${REQUIREMENTS}.txt

FROM packages AS app
WORKDIR /src
COPY . .
RUN /build/bin/pip --python /opt/tidegate/bin/python install --no-cache-dir --no-deps --no-build-isolation --target /opt/app .

FROM packages AS slim
COPY deploy/slim.sh .
RUN sh slim.sh /opt/tidegate/lib/python3*/site-packages && \
    echo /opt/app > "$(echo /opt/tidegate/lib/python3*/site-packages)/app.pth"

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --create-home tidegate
COPY --from=slim /opt/tidegate /opt/tidegate
COPY --from=app /opt/app /opt/app
ENV PATH=/opt/app/bin:/opt/tidegate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TIDEGATE_METRICS=0.0.0.0:9464
USER 10001:10001
WORKDIR /home/tidegate
# Whether the worker makes progress, not merely whether it lives.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "pipelines.observe.probe"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tidegate"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="tidegate-cloud" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
