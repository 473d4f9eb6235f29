"""PURE: The versions of the renderer, and the steps in which it changed.

An object that is rendered differently may restart all pods of a deployment. Therefore each
deployment keeps the version with which it was first rendered, until somebody asks for another one
(`desired/pins.py`). A step is a constant: the first version that renders something in a new way.
The code that renders it asks `images.renderer >= STEP`; nothing else is kept of older versions.
"""

from __future__ import annotations

# Release 0.1.0.
FIRST = 1

CURRENT = FIRST
