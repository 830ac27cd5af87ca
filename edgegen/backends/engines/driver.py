"""Which driver the GPU of this machine has."""

import re
from pathlib import Path

_KERNEL = Path("/proc/driver/nvidia/version")
_JETSON = Path("/etc/nv_tegra_release")  # there the driver comes with the system
_RELEASE = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)?\b|R\d+ \(release\), REVISION: [\d.]+")


def driver_version() -> str:
    """Release of the kernel driver ("580.65.06"), or of the system that brings it on a Jetson; empty where nobody says."""
    for place in (_KERNEL, _JETSON):
        try:
            found = _RELEASE.search(place.read_text(errors="replace"))
        except OSError:
            continue
        if found:
            return found[0]
    return ""
