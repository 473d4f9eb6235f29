# Release 0.1.0 of one of the project's images: the code of its wheel on the packages of today's image.
ARG BASE
FROM python:3.11-slim-bookworm AS kernels
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY disagg_worker/backend/cpu/build.py /src/
COPY disagg_worker/backend/cpu/src /src/src
RUN python3 /src/build.py --out /kernels

FROM ${BASE}
USER 0
RUN rm -rf /app/*
COPY . /app/
COPY --from=kernels /kernels /app/kernels
RUN python3 -m compileall -q /app
USER 65532:65532
