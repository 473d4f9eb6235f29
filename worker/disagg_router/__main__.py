"""The entry point of `python -m disagg_router`. With `--version`, nothing else is imported."""

import sys

from disagg_wire.version import VERSION

if sys.argv[1:] == ["--version"]:
    print(f"disagg-router {VERSION}")
else:
    from disagg_router.main import main

    main()
