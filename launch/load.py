"""Loads the task files with SkyPilot's own loader, as `make test-launch` does."""

from pathlib import Path

import sky

for path in sorted(Path(__file__).parent.glob("*.yaml")):
    task = sky.Task.from_yaml(str(path))
    if not task.name or not task.resources or not task.run:
        raise SystemExit(f"{path.name} must set name, resources and run")
    print(f"{path.name}: {task.name}, {', '.join(map(str, task.resources))}")
