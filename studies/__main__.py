"""`python -m studies ...`."""

from studies.engine.cli import main

raise SystemExit(main())
