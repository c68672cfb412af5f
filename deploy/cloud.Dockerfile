# The cloud tier: cloud and aggregate. Build with --build-arg REQUIREMENTS=train for an image that can train (torch).
#   docker build -f deploy/cloud.Dockerfile -t tidegate-cloud .
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
ARG REQUIREMENTS=base
RUN python3 -m venv /opt/tidegate
ENV PATH=/opt/tidegate/bin:$PATH
WORKDIR /src
COPY requirements/ requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/${REQUIREMENTS}.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --create-home tidegate
COPY --from=build /opt/tidegate /opt/tidegate
ENV PATH=/opt/tidegate/bin:$PATH PYTHONUNBUFFERED=1
USER tidegate
WORKDIR /home/tidegate
ENTRYPOINT ["tidegate"]
