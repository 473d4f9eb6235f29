# The worker with NIXL. The context is the folder that scripts/nixl prints.
ARG BASE
FROM ${BASE}
COPY . /nixl
ENV PYTHONPATH=/app:/nixl
