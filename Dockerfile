# One image for every process of ContainerPub: `python -m api`, `python -m worker`, `python -m scheduler`, and the
# `containerpub` command. Builds with the classic builder as well as with BuildKit.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
# --without-pip, and pip from outside: the environment holds what runs and nothing else, on images with or without
# the distribution's ensurepip.
RUN python3 -m venv --without-pip /opt/containerpub
COPY requirements.lock ./
RUN python3 -m pip --python /opt/containerpub/bin/python install \
        --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY api ./api
COPY cli ./cli
COPY runtimes ./runtimes
COPY scheduler ./scheduler
COPY shared ./shared
COPY sql ./sql
COPY worker ./worker
RUN python3 -m pip --python /opt/containerpub/bin/python install \
        --no-cache-dir --disable-pip-version-check --no-deps .

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="ContainerPub" \
      org.opencontainers.image.description="Self-hosted serverless functions and jobs" \
      org.opencontainers.image.licenses="MIT"
# A fixed id: files that are shared with the host, as the sandboxes' sockets are, can be given to it by number.
RUN groupadd --gid 10001 containerpub \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/containerpub --create-home \
        --shell /usr/sbin/nologin containerpub \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/containerpub/data
COPY --from=build /opt/containerpub /opt/containerpub
ENV PATH=/opt/containerpub/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/containerpub
USER 10001:10001
CMD ["containerpub", "--help"]
