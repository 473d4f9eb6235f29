"""The entry point of `python -m disagg_worker`. `--version` imports nothing else."""

import sys

from disagg_wire.version import VERSION

if sys.argv[1:] == ["--version"]:
    print(f"disagg-worker {VERSION}")
else:
    from disagg_worker.main import main

    main()
