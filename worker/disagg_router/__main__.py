"""The entry point of `python -m disagg_router`."""

from disagg_router.main import main

main()
