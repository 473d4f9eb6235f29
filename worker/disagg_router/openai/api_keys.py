"""The API keys. Their file is read again when it changes, so that keys and their limits can be
changed without a restart.
"""

from __future__ import annotations

import hmac
import logging
import time

from disagg_router.admission.quotas import Quota, Quotas
from disagg_router.key_file import ANYBODY
from disagg_router.settings import Settings
from disagg_wire.environment import SettingsError

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0


class ApiKeys:
    """The API keys that are accepted, with what each may still do.

    At startup, raises SettingsError for a file that cannot be used. Later, what was known stays
    valid while the file cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._version = self._look()
        self._looked_s = time.monotonic()
        self._quotas = Quotas(settings.api_keys(), self._looked_s)
        self._anybody = Quota(ANYBODY, self._looked_s)

    @property
    def required(self) -> bool:
        return self._settings.api_keys_file is not None

    def quota_of(self, given: str) -> Quota | None:
        """Return what the holder of a key may still do, or None if the key is not valid.

        Every key is compared, so the duration does not reveal which one was near.
        """
        if not self.required:
            return self._anybody
        self._refresh()
        raw, found = given.encode(), None
        for key, quota in self._quotas.by_key.items():
            if hmac.compare_digest(raw, key):
                found = quota
        return found

    def _look(self) -> tuple[int, int] | None:
        """Return a value that changes with the content of the file.

        A mounted Secret is swapped by a symbolic link.
        """
        if self._settings.api_keys_file is None:
            return None
        try:
            stat = self._settings.api_keys_file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino

    def _refresh(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        if (version := self._look()) == self._version:
            return
        try:
            self._quotas.change(self._settings.api_keys(), now_s)
        except SettingsError as error:
            log.warning("the API keys known stay valid: %s", error)
            return
        self._version = version
        log.info("%d API keys", len(self._quotas.by_key))
