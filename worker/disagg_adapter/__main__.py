"""The entry point of `python -m disagg_adapter`. `--version` imports nothing else."""

import sys

from disagg_wire.version import VERSION

if sys.argv[1:] == ["--version"]:
    print(f"disagg-adapter {VERSION}")
else:
    from disagg_adapter.main import main

    main()
