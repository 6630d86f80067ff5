"""On what kind of file system a store lies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_REMOTE: Final = frozenset(
    "afs beegfs ceph cifs fuse.glusterfs fuse.s3fs fuse.sshfs glusterfs lustre nfs nfs4 smb3 smbfs".split()
)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_TABLE: Final = Path("/proc/self/mountinfo")


def remote_warnings(path: Path) -> list[str]:
    """What to say of a store that lies on a file system of another machine, if it does: locks, which tell who lives,
    and syncs are promised there by somebody whom we cannot ask (rel:C8). Nothing where the system does not tell.

    The table is that of proc_pid_mountinfo(5): the place is the fifth word, the kind the first after " - ".
    """
    try:
        lines = _TABLE.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    found, kind = Path(), ""
    for line in lines:
        where, _, what = line.partition(" - ")
        place = Path(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), where.split(" ")[4]))
        if path.is_relative_to(place) and len(place.parts) >= len(found.parts):  # later ones lie on earlier ones
            found, kind = place, what.split(" ")[0]
    if kind not in _REMOTE:
        return []
    told = f"{path} lies on a file system of another machine ({kind}), which may not keep what locks and syncs promise:"
    return [f"{told} use it from one machine only. For several there are postgresql:// and redis://."]
