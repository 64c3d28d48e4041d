"""`python -m fairlib ...`."""

from .cli import main

raise SystemExit(main())
