"""Ends and removes the function containers of one PoP: `stop_instances.py <pop.json>`. Each finishes or gives back what it has."""

import sys
from pathlib import Path

from edgeflow.runner.docker import stop_all
from edgeflow.settings import PopSettings

settings = PopSettings.load(Path(sys.argv[1]))
ended = stop_all(settings.cluster, pop=settings.pop)
print(f"{settings.pop}: {ended} function containers ended")
