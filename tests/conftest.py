"""One torch thread a test process, and run-time checks of every tensor shape in the library."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from jaxtyping import install_import_hook

install_import_hook("nanochat_lib", "beartype.beartype")
