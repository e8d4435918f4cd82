"""One function of a benchmark in a process of its own: ``python -m benchmarks.isolated module:function``."""

from __future__ import annotations

import json
import sys

from benchmarks.harness import called

if __name__ == "__main__":
    print(json.dumps(called(sys.argv[1], json.load(sys.stdin))))
