"""Lock for the first import of large libraries, such as torch and transformers.

Two threads that import parts of one such library at once can meet in its circular imports. Python then gives one of
them a half-imported module, and the import fails. The window loads a model in one thread while it opens slides in
another, so this happens at its start.
"""

from __future__ import annotations

import threading

import_lock = threading.RLock()  # reentrant: loading a model imports torch first, then transformers
