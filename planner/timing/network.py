"""What does the network between the hosts of a run carry in a second?"""

from __future__ import annotations

import re

from autoft.errors import OptionError
from autoft.planner.timing.allreduce import Link

# Of a full link TCP carries 1,448 of 1,538 bytes: frames of 1,500 bytes, their headers and the gap between them.
# Assumption: an exchange gets no less than 0.3 of it, through host memory and one connection.
SHARE = (0.3, 0.94)
UNKNOWN_GBIT = (1.0, 10.0)  # assumption, where nobody has said: from what every PC has to what a workstation has
_FORMS = re.compile(r"(\d+(?:\.\d+)?)\s*(?:gbe|gbit/s|gbps|gbit|g)?", re.IGNORECASE)


def network_link(name: str | None) -> Link:
    """name: as people call it ("10GbE", "2.5 Gbit/s", "100"), None where they do not say.

    Raises: OptionError.
    """
    if name is None:
        slow, fast = (gbit * 1e9 / 8 for gbit in UNKNOWN_GBIT)
        what = f"a network of {UNKNOWN_GBIT[0]:g} to {UNKNOWN_GBIT[1]:g} Gbit/s"
        return Link(lower=SHARE[0] * slow, upper=SHARE[1] * fast, what=what)
    match = _FORMS.fullmatch(name.strip())
    if match is None or not 0 < float(match[1]) <= 3200:
        raise OptionError(f"--link {name}: not a network's speed", fix="--link 10GbE, or another number of Gbit/s")
    rate = float(match[1]) * 1e9 / 8
    return Link(lower=SHARE[0] * rate, upper=SHARE[1] * rate, what=f"{float(match[1]):g} Gbit/s between hosts")
