# The worker with an engine that is slow at each step.
ARG BASE
FROM ${BASE}
USER 0
RUN printf '%s\n' '' 'import time as _time' '_turn = TorchEngine._turn' 'def _slow(self):' '    _time.sleep(0.1)' \
      '    return _turn(self)' 'TorchEngine._turn = _slow' >> /app/disagg_worker/engine/core.py \
 && python3 -m compileall -q /app
USER 65532:65532
