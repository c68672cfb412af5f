# The edge tier: produce, edge, settle, uplink and downlink, and the commands that look after topics and accounts.
# Neither torch nor the embedded Kafka is in it.
#   docker build -f deploy/edge.Dockerfile -t tidegate-edge .
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
RUN python3 -m venv /opt/tidegate
ENV PATH=/opt/tidegate/bin:$PATH
WORKDIR /src
COPY requirements/ requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/base.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --create-home tidegate
COPY --from=build /opt/tidegate /opt/tidegate
ENV PATH=/opt/tidegate/bin:$PATH PYTHONUNBUFFERED=1
USER tidegate
WORKDIR /home/tidegate
ENTRYPOINT ["tidegate"]
