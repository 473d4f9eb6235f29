"""The API keys. Their file is read again when it changes, so that keys can be rotated without a
restart.
"""

from __future__ import annotations

import hmac
import logging
import time

from disagg_router.settings import Settings, SettingsError

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0


class ApiKeys:
    """The API keys that are accepted.

    At startup, raises SettingsError for a file that cannot be used. Later, the known keys stay
    valid while the file cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._version = self._look()
        self._keys = self._read()
        self._looked_s = time.monotonic()

    @property
    def required(self) -> bool:
        return self._settings.api_keys_file is not None

    def accept(self, given: str) -> bool:
        """Return whether the key is valid.

        Every key is compared, so the duration does not reveal which one was near.
        """
        self._refresh()
        raw = given.encode()
        return sum(hmac.compare_digest(raw, key) for key in self._keys) > 0

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

    def _read(self) -> list[bytes]:
        return [k.encode() for k in self._settings.api_keys()]

    def _refresh(self) -> None:
        now_s = time.monotonic()
        if not self.required or now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        if (version := self._look()) == self._version:
            return
        try:
            self._keys = self._read()
        except SettingsError as error:
            log.warning("the API keys known stay valid: %s", error)
            return
        self._version = version
        log.info("%d API keys", len(self._keys))
