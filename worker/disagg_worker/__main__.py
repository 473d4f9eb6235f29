"""The entry point of `python -m disagg_worker`."""

from disagg_worker.main import main

main()
