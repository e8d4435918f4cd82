"""``python -m infermesh``."""

from infermesh.cli import main

main()
